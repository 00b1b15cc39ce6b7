//! `docs/SEMANTICS.md` promises nothing that no test holds.
//!
//! Below its first heading of the second order the page is made of bullets and table rows only.
//! Each ends with its tests: ``[`module::name`, `module::name`]``. A name is the path of a test of
//! this binary, or of a row of a table of checks (`posix`), or begins with `corfs::` for a test of
//! the crate itself.

use std::fs;
use std::path::{Path, PathBuf};

/// One promise, with the tests that hold it.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    line: usize,
    words: String,
    tests: Vec<String>,
}

/// The bullets and rows of the page; what is neither, below the introduction, is an error.
fn promises(page: &str) -> Result<Vec<Promise>, String> {
    let mut items: Vec<(usize, String)> = Vec::new();
    let (mut open, mut introduction) = (false, true);
    for (index, line) in page.lines().enumerate() {
        let number = index + 1;
        let text = line.trim_end();
        if text.starts_with('#') {
            introduction &= !text.starts_with("## ");
            open = false;
        } else if introduction {
        } else if text.is_empty() {
            open = false;
        } else if let Some(bullet) = text.strip_prefix("- ") {
            items.push((number, bullet.to_owned()));
            open = true;
        } else if let Some(row) = text.strip_prefix('|') {
            // The head of a table, and the line below it, promise nothing.
            let head = page.lines().nth(number).is_some_and(is_rule);
            if !head && !is_rule(text) {
                items.push((number, row.trim_end_matches('|').trim_end().to_owned()));
            }
            open = false;
        } else if open && text.starts_with("  ") {
            let (_, item) = items.last_mut().expect("an open item");
            item.push(' ');
            item.push_str(text.trim_start());
        } else {
            return Err(format!("line {number} is neither bullet nor row: {text}"));
        }
    }
    items.into_iter().map(promise).collect()
}

/// The line below the head of a table.
fn is_rule(line: &str) -> bool {
    line.starts_with("|-") && line.chars().all(|c| "|-: ".contains(c))
}

fn promise((line, text): (usize, String)) -> Result<Promise, String> {
    let fault = |what: &str| format!("line {line} {what}: {text}");
    let list = text
        .strip_suffix("`]")
        .ok_or_else(|| fault("does not end with its tests"))?;
    let at = list
        .rfind("[`")
        .ok_or_else(|| fault("does not end with its tests"))?;
    let words = list[..at].trim_end_matches(['|', ' ']).trim_start();
    if words.len() < 10 {
        return Err(fault("says nothing"));
    }
    let tests: Vec<String> = list[at + 2..].split("`, `").map(str::to_owned).collect();
    let path = |test: &String| {
        test.contains("::")
            && test
                .chars()
                .all(|c| c == ':' || c == '_' || c.is_alphanumeric())
    };
    match tests.iter().find(|test| !path(test)) {
        Some(test) => Err(fault(&format!("names {test:?}, which is no test's path"))),
        None => Ok(Promise {
            line,
            words: words.to_owned(),
            tests,
        }),
    }
}

/// The files in which the module of a test may stand.
fn files(root: &Path, modules: &[&str]) -> Vec<PathBuf> {
    if let ["corfs", inner @ ..] = modules {
        let inner = inner.strip_suffix(&["tests"]).unwrap_or(inner);
        let path = root.join("src").join(inner.join("/"));
        return ["{}.rs", "{}_tests.rs", "{}/mod.rs", "{}/tests.rs"]
            .map(|form| form.replace("{}", &path.to_string_lossy()).into())
            .to_vec();
    }
    let path = root.join("tests/it").join(modules.join("/"));
    vec![path.with_extension("rs"), path.join("mod.rs")]
}

/// Whether the source has a test of that name: a function marked so, or a row of a table.
fn holds(source: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|line| line.starts_with(&head)) else {
        return false;
    };
    let marks = lines[..at].iter().rev();
    let marked = marks
        .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
        .any(|&line| line == "#[test]");
    marked || is_row(&lines, name)
}

/// Whether `checks! { … }` has that row.
fn is_row(lines: &[&str], name: &str) -> bool {
    let rows = lines.iter().skip_while(|&&line| line != "checks! {");
    rows.take_while(|&&line| line != "}")
        .any(|line| line.split([',', ' ']).next() == Some(name))
}

fn exists(root: &Path, test: &str) -> bool {
    let mut modules: Vec<&str> = test.split("::").collect();
    let name = modules.pop().unwrap_or_default();
    files(root, &modules)
        .iter()
        .any(|file| fs::read_to_string(file).is_ok_and(|source| holds(&source, name)))
}

#[test]
fn every_promise_is_held_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/SEMANTICS.md")).expect("the page");
    let promises = promises(&page).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(promises.len() > 20, "{}", promises.len());
    let mut faults = Vec::new();
    for promise in promises {
        let missing = promise.tests.iter().filter(|test| !exists(root, test));
        faults.extend(missing.map(|test| format!("line {}: no test {test}", promise.line)));
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn every_section_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/SEMANTICS.md")).expect("the page");
    for section in [
        "Consistency",
        "Atomicity",
        "Durability",
        "Locking",
        "Caching",
        "Errors",
        "Copies",
        "Limits",
        "Callers",
    ] {
        let head = format!("## {section}");
        assert!(page.lines().any(|line| line == head), "{head}");
    }
}

#[test]
fn bullets_and_rows_are_read() {
    let page = "# Title\nWords.\n\n## One\n\n- What is said\n  goes on. [`a::b`, `c::d`]\n\n\
                | what | why |\n|---|---|\n| a long enough row | reason [`e::f`] |\n";
    let read = promises(page).unwrap();
    assert_eq!(read.len(), 2, "{read:#?}");
    assert_eq!(read[0].words, "What is said goes on.");
    assert_eq!(read[0].tests, ["a::b", "c::d"]);
    assert_eq!(
        (read[1].line, &read[1].tests[..]),
        (11, &["e::f".into()][..])
    );
}

#[test]
fn what_no_test_holds_is_seen() {
    let page = |text: &str| promises(&format!("# T\n\n## S\n\n{text}\n"));
    for text in [
        "A paragraph that promises something. [`a::b`]",
        "- A promise that names no test.",
        "- A promise that names nothing. []",
        "- A promise with words for a test. [`a test of ours`]",
        "- [`a::b`]",
        "| a row without a test | reason |",
    ] {
        assert!(page(text).is_err(), "{text}");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(exists(root, "semantics::what_no_test_holds_is_seen"));
    assert!(exists(root, "posix::locks::a_write_lock_excludes"));
    assert!(exists(root, "posix::native_directory"));
    assert!(exists(
        root,
        "corfs::sys::watch::tests::a_pending_signal_is_seen"
    ));
    assert!(exists(
        root,
        "corfs::mirror::table::tests::the_root_is_never_forgotten"
    ));
    for none in [
        "semantics::promises",
        "posix::locks::two",
        "posix::locks::no_such_test",
        "nowhere::a_write_lock_excludes",
        "corfs::sys::watch::judge",
    ] {
        assert!(!exists(root, none), "{none}");
    }
}
