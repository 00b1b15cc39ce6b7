//! Reads our own OpenMetrics text back, for `corfs stat`.

/// One line of the text: a series and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name with its suffix (`_total`, `_bucket`, `_sum`, `_count`).
    pub name: String,
    /// Names and values of the labels, in the order of the text, escapes undone.
    pub labels: Vec<(String, String)>,
    /// The value; counters above 2^53 lose their last digits.
    pub value: f64,
}

/// The samples of a text. Comments, and lines that are not samples, are skipped: a newer daemon
/// may print what an older `corfs stat` does not know.
pub fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => labels(inner)?,
        None => (Vec::new(), rest),
    };
    // A timestamp or an exemplar may follow the value; ours has neither.
    let value = rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The labels from behind `{` on, and what follows `}`.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut found = Vec::new();
    while !rest.starts_with('}') {
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        found.push((key.to_owned(), value));
        rest = match after.strip_prefix(',') {
            Some(next) => next,
            None if after.starts_with('}') => after,
            None => return None,
        };
    }
    Some((found, &rest[1..]))
}

/// A label's value up to its closing quote, and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Sample {
        let samples = parse(line);
        assert_eq!(samples.len(), 1, "{line}");
        samples.into_iter().next().expect("one")
    }

    #[test]
    fn a_sample_is_name_labels_and_value() {
        let sample = one(r#"a_total{op="read",path="x\"y\\z\n,}"} 12.5"#);
        assert_eq!(sample.name, "a_total");
        assert_eq!(sample.value, 12.5);
        let labels = [("op", "read"), ("path", "x\"y\\z\n,}")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(sample.labels, labels);
    }

    #[test]
    fn labels_may_be_absent_or_empty() {
        assert_eq!(one("a 1").labels, []);
        assert_eq!(one("a{} 1").labels, []);
        assert_eq!(one("a 1 1700000000").value, 1.0);
        assert_eq!(one("a_bucket{le=\"+Inf\"} +Inf").value, f64::INFINITY);
    }

    #[test]
    fn what_does_not_parse_is_skipped() {
        let bad = [
            "# TYPE a counter",
            "",
            "a",
            "a ",
            "a b",
            "{x=\"y\"} 1",
            "1a 1",
            "a{x=\"y} 1",
            "a{x=y} 1",
            "a{x=\"y\"",
            "a{x=\"y\" z=\"w\"} 1",
            "a{x=\"\\",
        ];
        for line in bad {
            assert_eq!(parse(line), [], "{line}");
        }
        assert_eq!(parse(&format!("{}\nb 2\n", bad.join("\n"))).len(), 1);
    }
}
