//! Holds the code to the stairs of the house: imports go down only, `fuser` is named in `fuse/`
//! alone, and `unsafe` lives in `sys/` and `window/`.

use std::fs;
use std::path::{Path, PathBuf};

/// The floors from the top; each may import itself and those after it.
const STAIRS: [&str; 7] = ["cli", "fuse", "mirror", "cache", "copy", "window", "sys"];

/// A floor beside the stairs: everyone may import it, it imports `sys` alone.
const BESIDE: &str = "observe";

// ---------------------------------------------------------------------------------------------
// What a source file says, without comments and literals

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`, the only punctuation of two characters that matters here.
    Path,
    Other(char),
}

/// The words and marks of Rust source; comments, strings and characters are left out.
fn tokens(source: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = skip_ignored(rest) {
            rest = after;
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            found.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else if let Some(after) = rest.strip_prefix("::") {
            found.push(Token::Path);
            rest = after;
        } else {
            if !first.is_whitespace() {
                found.push(Token::Other(first));
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

/// What follows the comment or literal at the start of `text`, if there is one.
fn skip_ignored(text: &str) -> Option<&str> {
    if text.starts_with("//") {
        return Some(text.find('\n').map_or("", |end| &text[end..]));
    }
    if text.starts_with("/*") {
        return Some(skip_block_comment(text));
    }
    for prefix in ["br", "cr", "r"] {
        if let Some(hashes) = text.strip_prefix(prefix)
            && let Some(after) = skip_raw_string(hashes)
        {
            return Some(after);
        }
    }
    for prefix in ["b\"", "c\"", "\""] {
        if let Some(body) = text.strip_prefix(prefix) {
            return Some(skip_to_quote(body, '"'));
        }
    }
    skip_char(
        text.strip_prefix("b'")
            .or_else(|| text.strip_prefix('\''))?,
    )
}

fn skip_block_comment(text: &str) -> &str {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return &text[at..];
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    ""
}

/// After `#*"`…`"#*`, given the text behind the `r`.
fn skip_raw_string(text: &str) -> Option<&str> {
    let hashes = text.len() - text.trim_start_matches('#').len();
    let body = text[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(
        body.find(&close)
            .map_or("", |end| &body[end + close.len()..]),
    )
}

fn skip_to_quote(body: &str, quote: char) -> &str {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return &body[at + 1..];
        }
    }
    ""
}

/// After a character literal, given the text behind its first quote; `None` for a lifetime.
fn skip_char(body: &str) -> Option<&str> {
    if body.starts_with('\\') {
        return Some(skip_to_quote(body, '\''));
    }
    let mut chars = body.chars();
    chars.next()?;
    chars.as_str().strip_prefix('\'')
}

// ---------------------------------------------------------------------------------------------
// The rules

/// The top-level modules of the crate that these tokens name by path; `depth` times `super` leads
/// to the crate's root.
fn imported(tokens: &[Token], depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut above = 0;
    for (at, token) in tokens.iter().enumerate() {
        let Token::Word(root) = token else {
            if *token != Token::Path {
                above = 0;
            }
            continue;
        };
        above = if root == "super" { above + 1 } else { 0 };
        let from_root = root == "crate" || root == "corfs";
        let from_above = above >= depth;
        if !(from_root || from_above) || tokens.get(at + 1) != Some(&Token::Path) {
            continue;
        }
        let names = names_after(&tokens[at + 2..]);
        // What stands above may be a neighbour in an inner module; it counts when it bears the name
        // of a floor.
        found.extend(names.into_iter().filter(|name| from_root || is_floor(name)));
    }
    found
}

/// `a` of `a::b`, or the first names of each part of `{a::b, c}`.
fn names_after(tokens: &[Token]) -> Vec<String> {
    match tokens.first() {
        Some(Token::Word(name)) => vec![name.clone()],
        Some(Token::Other('{')) => group_names(&tokens[1..]),
        _ => Vec::new(),
    }
}

fn group_names(tokens: &[Token]) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut start = true;
    for token in tokens {
        match token {
            Token::Other('{') => depth += 1,
            Token::Other('}') if depth == 0 => break,
            Token::Other('}') => depth -= 1,
            Token::Other(',') if depth == 0 => start = true,
            Token::Word(name) if depth == 0 && start => {
                names.push(name.clone());
                start = false;
            }
            _ => {}
        }
    }
    names
}

fn is_floor(name: &str) -> bool {
    STAIRS.contains(&name) || name == BESIDE
}

/// Whether code of floor `from` may name floor `to`. What is no floor (`Result`, a macro) may be
/// named by anyone.
fn allowed(from: &str, to: &str) -> bool {
    if !is_floor(to) || from == to || to == BESIDE {
        return true;
    }
    if from == BESIDE {
        return to == "sys";
    }
    let step = |name| STAIRS.iter().position(|&floor| floor == name);
    match (step(from), step(to)) {
        (Some(from), Some(to)) => from < to,
        // `main.rs` and `lib.rs` stand above the stairs.
        _ => true,
    }
}

/// What a source file of floor `floor` does that it must not. `depth` times `super` leads from
/// there to the crate's root.
fn faults(floor: &str, depth: usize, source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut faults: Vec<String> = imported(&tokens, depth)
        .into_iter()
        .filter(|to| !allowed(floor, to))
        .map(|to| format!("imports {to}"))
        .collect();
    let says = |word: &str| tokens.contains(&Token::Word(word.to_owned()));
    if floor != "fuse" && says("fuser") {
        faults.push("names fuser".into());
    }
    if !["sys", "window"].contains(&floor) && says("unsafe") {
        faults.push("has unsafe".into());
    }
    faults
}

fn source_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// `mirror` for `mirror/file.rs` and `mirror.rs`, `main` for `main.rs`.
fn floor_of(path: &Path) -> String {
    let first = path.components().next().expect("a path in src");
    let name = Path::new(first.as_os_str()).file_stem().expect("a name");
    name.to_string_lossy().into_owned()
}

#[test]
fn imports_go_down_the_stairs_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&root, &mut files);
    assert!(files.len() > STAIRS.len(), "src was found: {files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).expect("under src");
        let source = fs::read_to_string(&file).expect("source is text");
        let inside = name.components().count();
        let depth = inside - usize::from(name.ends_with("mod.rs"));
        for fault in faults(&floor_of(name), depth, &source) {
            wrong.push(format!("{}: {fault}", name.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_kind_of_climbing_is_seen() {
    for source in [
        "use crate::fuse::session;",
        "use crate::{sys, fuse::{a, b}};",
        "use crate::{\n    sys::{Fail, Result},\n    fuse,\n};",
        "fn f() { let a = '\"'; crate::fuse::g(); }",
        "use super::fuse::x;",
        "fn f<'a>(x: &'a str) { crate::fuse::g(x, \"}\") }",
    ] {
        assert_eq!(faults("mirror", 1, source), ["imports fuse"], "{source}");
    }
    assert_eq!(
        faults("observe", 1, "use crate::window::Map;"),
        ["imports window"]
    );
    assert_eq!(
        faults("sys", 1, "use crate::window::Map;"),
        ["imports window"]
    );
    assert_eq!(
        faults("window", 2, "use super::super::cache::x;"),
        ["imports cache"]
    );
    assert_eq!(faults("window", 2, "use super::cache::x;"), [""; 0]);
    assert_eq!(faults("copy", 1, "use fuser::Errno;"), ["names fuser"]);
    assert_eq!(faults("mirror", 1, "unsafe { f() }"), ["has unsafe"]);
}

#[test]
fn what_is_allowed_or_only_talk_is_no_fault() {
    for source in [
        "use crate::{sys::{mirror, fuse}, window, observe};",
        "use crate::mirror::names;",
        "// crate::fuse is above us, /* unsafe",
        "/* crate::fuse /* unsafe */ fuser */ fn f() {}",
        "/// [`crate::fuse::adapter`]\nfn f() {}",
        "const A: &str = \"unsafe crate::fuse\";",
        "const A: &str = r#\"fuser \" unsafe\"#;",
        "#![deny(unsafe_op_in_unsafe_fn)]",
        "use super::names;",
    ] {
        assert_eq!(faults("mirror", 1, source), [""; 0], "{source}");
    }
    assert_eq!(
        faults("main", 1, "use corfs::cli; use corfs::fuse;"),
        [""; 0]
    );
    assert_eq!(faults("fuse", 1, "use fuser::Filesystem;"), [""; 0]);
    assert_eq!(faults("window", 1, "// SAFETY: …\nunsafe { f() }"), [""; 0]);
}

/// A house whose picture lacks rooms misleads who reads it first.
#[test]
fn the_picture_of_the_house_shows_every_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/ARCHITECTURE.md")).expect("the page");
    let picture = page.split("```").nth(1).expect("the picture comes first");
    let shown: Vec<&str> = picture
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .collect();
    let mut files = Vec::new();
    source_files(&root.join("src"), &mut files);
    let rooms = files.iter().filter_map(|file| {
        let path = file.strip_prefix(root.join("src")).expect("under src");
        let words: Vec<_> = path.iter().map(|word| word.to_string_lossy()).collect();
        let tests = words.iter().any(|word| word.contains("test"));
        let name = match words.as_slice() {
            [.., folder, last] if last == "mod.rs" => folder,
            [.., last] => last,
            [] => return None,
        };
        (!tests && name != "lib.rs").then(|| name.trim_end_matches(".rs").to_owned())
    });
    let missing: Vec<_> = rooms.filter(|room| !shown.contains(&&**room)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
