//! What a campaign has done so far: a file for each, `docs/reliability/NAME.json`.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Done;
use super::figures::Figures;
use crate::command::{root, said_by};

/// One run of a campaign.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The commit that it ran on; with a `+` where the code was changed since.
    pub commit: String,
    /// The day on which it began, as `2026-03-02`.
    pub day: String,
    /// How long it took.
    pub minutes: f64,
    /// The first position.
    pub from: u64,
    /// The position after the last.
    pub to: u64,
    /// What was counted.
    pub figures: Figures,
    /// What was violated, each with its seed.
    pub violations: Vec<String>,
    /// What is to be named, and is no violation.
    pub remarks: Vec<String>,
    /// What it looked at anew, if that is looked at in each round. Such a run is of one batch.
    pub part: Option<String>,
}

impl Run {
    /// A run that has done nothing yet.
    pub fn begin(from: u64) -> Result<Self> {
        Ok(Self {
            commit: commit()?,
            day: said_by(Command::new("date").args(["-u", "+%Y-%m-%d"]))?,
            minutes: 0.0,
            from,
            to: from,
            figures: Figures::default(),
            violations: Vec::new(),
            remarks: Vec::new(),
            part: None,
        })
    }

    /// One more batch was done, and so much time has gone since the beginning.
    pub fn add(&mut self, done: Done, gone: Duration) {
        self.to = done.to;
        self.figures.add_all(&done.figures);
        self.violations.extend(done.violations);
        self.remarks.extend(done.remarks);
        self.part = done.part;
        self.minutes = (gone.as_secs_f64() / 6.0).round() / 10.0;
    }

    fn to_json(&self) -> Value {
        let mut json = json!({
            "commit": self.commit,
            "day": self.day,
            "minutes": self.minutes,
            "from": self.from,
            "to": self.to,
            "counts": self.figures.to_json(),
            "violations": self.violations,
        });
        if !self.remarks.is_empty() {
            json["remarks"] = json!(self.remarks);
        }
        if let Some(part) = &self.part {
            json["part"] = json!(part);
        }
        json
    }

    fn from_json(json: &Value) -> Option<Self> {
        Some(Self {
            commit: json["commit"].as_str()?.to_owned(),
            day: json["day"].as_str()?.to_owned(),
            minutes: json["minutes"].as_f64()?,
            from: json["from"].as_u64()?,
            to: json["to"].as_u64()?,
            figures: Figures::from_json(json["counts"].as_object()?),
            violations: texts(&json["violations"])?,
            remarks: match &json["remarks"] {
                Value::Null => Vec::new(),
                remarks => texts(remarks)?,
            },
            part: match &json["part"] {
                Value::Null => None,
                part => Some(part.as_str()?.to_owned()),
            },
        })
    }
}

fn texts(json: &Value) -> Option<Vec<String>> {
    let all = json.as_array()?.iter();
    all.map(|text| text.as_str().map(str::to_owned)).collect()
}

/// All runs of one campaign, in order.
pub struct Runs {
    file: PathBuf,
    /// The runs that are over.
    pub all: Vec<Run>,
}

impl Runs {
    /// Reads them; none where there is no file.
    pub fn read(name: &str) -> Result<Self> {
        let file = root()
            .join("docs/reliability")
            .join(name)
            .with_extension("json");
        let all = match fs::read(&file) {
            Ok(bytes) => parse(&bytes).with_context(|| format!("{} is damaged", file.display()))?,
            Err(_) => Vec::new(),
        };
        Ok(Self { file, all })
    }

    /// Those that count: all, but for what was looked at anew since.
    pub fn counted(&self) -> Vec<&Run> {
        let newest: HashMap<_, _> = self.all.iter().map(|run| (&run.part, run.from)).collect();
        let counts = |run: &&Run| run.part.is_none() || newest[&run.part] == run.from;
        self.all.iter().filter(counts).collect()
    }

    /// Where to go on.
    pub fn position(&self) -> u64 {
        self.all.last().map_or(1, |run| run.to)
    }

    /// Writes them, and one more that is under way.
    pub fn write_with(&self, run: &Run) -> Result<()> {
        let runs: Vec<Value> = self.all.iter().chain([run]).map(Run::to_json).collect();
        let text = format!(
            "{}\n",
            serde_json::to_string_pretty(&json!({ "runs": runs }))?
        );
        fs::create_dir_all(self.file.with_file_name(""))?;
        let new = self.file.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &self.file)
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Run>> {
    let json: Value = serde_json::from_slice(bytes)?;
    let runs = json["runs"].as_array().context("no list of runs")?;
    let all = runs.iter().map(Run::from_json).collect::<Option<_>>();
    all.context("a run that lacks something")
}

fn commit() -> Result<String> {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(root()).args(args);
        said_by(&mut git)
    };
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--", ".", ":!docs", ":!*.md"])?;
    Ok(if changed.is_empty() {
        commit
    } else {
        commit + "+"
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::{Run, Runs, parse};
    use crate::campaign::Done;
    use crate::campaign::figures::Figures;

    #[test]
    fn a_campaign_goes_on_where_its_file_says() {
        let file = std::env::temp_dir().join(format!("onlyonce-runs-{}.json", std::process::id()));
        let runs = Runs {
            file: file.clone(),
            all: Vec::new(),
        };
        assert_eq!(runs.position(), 1);
        let mut run = Run::begin(1).unwrap();
        let done = Done {
            to: 7,
            figures: Figures::from([("kills", 90)]),
            violations: vec!["seed 6: I1".to_owned()],
            remarks: vec!["a mutant that was missed".to_owned()],
            part: Some("core 1 of 6".to_owned()),
        };
        run.add(done, Duration::from_secs(90));
        runs.write_with(&run).unwrap();
        let again = parse(&std::fs::read(&file).unwrap()).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(again, [run]);
        assert_eq!(Runs { file, all: again }.position(), 7);
    }

    #[test]
    fn of_a_part_that_is_looked_at_in_each_round_the_newest_run_counts() {
        let run = |from, part: Option<&str>| Run {
            part: part.map(str::to_owned),
            ..Run::begin(from).unwrap()
        };
        let runs = Runs {
            file: PathBuf::new(),
            all: vec![
                run(1, None),
                run(2, Some("a")),
                run(3, Some("b")),
                run(4, Some("a")),
                run(5, None),
            ],
        };
        let counted: Vec<_> = runs.counted().iter().map(|run| run.from).collect();
        assert_eq!(counted, [1, 3, 4, 5]);
    }

    #[test]
    fn a_file_that_lacks_something_is_refused() {
        assert!(parse(b"{}").is_err());
        assert!(parse(br#"{"runs":[{"commit":"a"}]}"#).is_err());
    }
}
