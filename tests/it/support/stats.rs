//! The numbers of `.corfs/stats`.

use std::collections::BTreeMap;

/// One line of `.corfs/stats`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The metric, with its suffix (`_total`, `_bucket`, …).
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its number.
    pub(crate) value: f64,
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (head, value) = line.rsplit_once(' ')?;
        let (name, labels) = match head.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}')?),
            None => (head, ""),
        };
        // No label value of ours holds a comma or a quote.
        let labels = labels
            .split(',')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=')?;
                Some((key.to_owned(), value.trim_matches('"').to_owned()))
            })
            .collect::<Option<_>>()?;
        Some(Self {
            name: name.to_owned(),
            labels,
            value: value.parse().ok()?,
        })
    }
}

/// The numbers of `.corfs/stats` at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    /// In the order of the file.
    pub(crate) samples: Vec<Sample>,
}

impl Stats {
    /// Reads OpenMetrics text; panics on a line that is none.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line:?}")))
            .collect();
        Self { samples }
    }

    /// The sum of all samples of that name which carry (at least) those labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(k, v)| sample.labels.get(*k).is_some_and(|x| x == v))
        };
        self.samples.iter().filter(fits).map(|s| s.value).sum()
    }

    /// As [`Stats::sum`], but panics when there is no such sample.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        assert!(
            self.samples.iter().any(|sample| sample.name == name),
            "no {name} among the statistics"
        );
        self.sum(name, labels)
    }
}

#[test]
fn a_sample_of_the_statistics_is_understood() {
    let stats = Stats::parse(
        "# TYPE a counter\na_total{mode=\"mmap\",x=\"y\"} 3\na_total{mode=\"pread\"} 4\nb 1.5\n# EOF\n",
    );
    assert_eq!(stats.value("a_total", &[("mode", "mmap")]), 3.0);
    assert_eq!(stats.value("a_total", &[]), 7.0);
    assert_eq!(stats.value("b", &[]), 1.5);
}
