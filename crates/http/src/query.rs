//! The query of a request, as far as a credential may stand in it.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// `query` without its parameters named `parameter`; borrowed where there is none.
///
/// What is shown or stored of a request goes through here (I16).
pub fn without_parameter<'a>(query: &'a str, parameter: &str) -> Cow<'a, str> {
    if !query.split('&').any(|pair| is_named(pair, parameter)) {
        return Cow::Borrowed(query);
    }
    let mut kept = String::with_capacity(query.len());
    for pair in query.split('&').filter(|pair| !is_named(pair, parameter)) {
        if !kept.is_empty() {
            kept.push('&');
        }
        kept.push_str(pair);
    }
    Cow::Owned(kept)
}

/// The decoded values of the parameters named `parameter`.
pub(crate) fn values_of<'a>(
    query: &'a str,
    parameter: &'a str,
) -> impl Iterator<Item = Cow<'a, [u8]>> {
    query
        .split('&')
        .filter(move |pair| is_named(pair, parameter))
        .map(|pair| percent_decode_str(pair.split_once('=').map_or("", |(_, value)| value)).into())
}

fn is_named(pair: &str, parameter: &str) -> bool {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    name == parameter
        || (name.contains('%') && percent_decode_str(name).eq(parameter.as_bytes().iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_taken_out_wherever_it_stands() {
        for (query, rest) in [
            ("key=s", ""),
            ("key=s&alt=sse", "alt=sse"),
            ("alt=sse&key=s", "alt=sse"),
            ("a=1&key=s&b=2&key=t", "a=1&b=2"),
            ("k%65y=s&a=1", "a=1"),
            ("key", ""),
        ] {
            assert_eq!(without_parameter(query, "key"), rest, "{query}");
        }
    }

    #[test]
    fn other_parameters_stay_as_they_were_written() {
        for query in [
            "",
            "alt=sse",
            "monkey=s",
            "keys=1&Key=2",
            "a=%6b&&b",
            "a=key=1",
        ] {
            let kept = without_parameter(query, "key");
            assert_eq!(kept, query);
            assert!(matches!(kept, Cow::Borrowed(_)));
        }
    }
}
