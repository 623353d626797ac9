//! Command line arguments, by hand: a parser crate would double the build time of the chores.

use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// The arguments that are still to be read.
pub struct Args {
    rest: Vec<String>,
}

impl Args {
    /// The arguments of this process.
    pub fn from_env() -> Self {
        Self {
            rest: std::env::args().skip(1).collect(),
        }
    }

    /// Takes the first argument if it is a word and not an option.
    pub fn command(&mut self) -> Option<String> {
        let is_word = self
            .rest
            .first()
            .is_some_and(|first| !first.starts_with('-'));
        is_word.then(|| self.rest.remove(0))
    }

    /// Takes `--name`, and says whether it was there.
    pub fn flag(&mut self, name: &str) -> bool {
        let position = self.rest.iter().position(|arg| arg == name);
        position.map(|index| self.rest.remove(index)).is_some()
    }

    /// Takes `--name VALUE`.
    pub fn value<T: FromStr>(&mut self, name: &str) -> Result<Option<T>>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let Some(index) = self.rest.iter().position(|arg| arg == name) else {
            return Ok(None);
        };
        if index + 1 >= self.rest.len() {
            bail!("{name} needs a value");
        }
        let text = self.rest.remove(index + 1);
        self.rest.remove(index);
        let value = text
            .parse()
            .with_context(|| format!("{name} cannot be `{text}`"))?;
        Ok(Some(value))
    }

    /// Refuses whatever was not taken.
    pub fn finish(self) -> Result<()> {
        match self.rest.first() {
            None => Ok(()),
            Some(unknown) => bail!("there is no option `{unknown}` here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Args;

    fn args(words: &[&str]) -> Args {
        Args {
            rest: words.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_value_a_flag_and_a_command_are_taken_in_any_order() {
        let mut args = args(&["http", "--seed", "7", "--quick"]);
        assert_eq!(args.command().as_deref(), Some("http"));
        assert!(args.flag("--quick"));
        assert_eq!(args.value::<u64>("--seed").unwrap(), Some(7));
        args.finish().unwrap();
    }

    #[test]
    fn what_nobody_takes_is_refused() {
        assert!(args(&["--sed", "7"]).finish().is_err());
        assert!(args(&["--seed"]).value::<u64>("--seed").is_err());
        assert!(args(&["--seed", "x"]).value::<u64>("--seed").is_err());
    }
}
