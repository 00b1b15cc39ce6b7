//! Lines, what they mean, and what is said of those that mean nothing.

use std::num::{NonZeroU16, NonZeroU64};

use proptest::prelude::*;

use super::super::options::{Backup, Method, Preserve, Priority, Reflink, Sparse};
use super::*;
use crate::sys::Errno;

fn request(line: &str) -> Request {
    let parsed = parse(line.as_bytes());
    parsed
        .unwrap_or_else(|fail| panic!("{line}: {fail}"))
        .unwrap()
}

fn copy(line: &str) -> CopyRequest {
    match request(line) {
        Request::Copy(copy) => *copy,
        other => panic!("{line}: {other:?}"),
    }
}

fn options(line: &str) -> CopyOptions {
    copy(&format!("{line} a b")).options
}

#[track_caller]
fn complaint(line: &str) -> String {
    let fail = parse(line.as_bytes()).unwrap_err();
    assert_eq!(fail.errno, Errno::INVAL);
    fail.detail.unwrap().into()
}

#[test]
fn a_line_is_sources_and_a_destination() {
    let plain = copy("from 'to there'");
    assert_eq!(plain.sources, [b"from"]);
    assert_eq!(plain.destination, b"to there");
    assert_eq!(plain.options, CopyOptions::default());
    assert!(!plain.background);
    let many = copy("a b c d");
    assert_eq!((many.sources.len(), many.destination), (3, b"d".into()));
    let into = copy("-t there a b");
    assert_eq!(
        (into.sources.len(), into.destination),
        (2, b"there/.".into())
    );
}

#[test]
fn nothing_and_comments_are_no_requests() {
    for line in ["", "  \t ", "# from to", "  #"] {
        assert_eq!(parse(line.as_bytes()).unwrap(), None);
    }
}

#[test]
fn an_ampersand_of_its_own_sends_to_the_background() {
    for line in ["a b &", "a b &  # later", "-- a b &", "-r a b\t&"] {
        assert!(copy(line).background, "{line}");
    }
    for line in [
        "a '&'",
        r"a \&",
        r#"a "b&""#,
        "a& b",
        "R&D b",
        r"a b\&",
        "a $'&'",
    ] {
        assert!(!copy(line).background, "{line}");
    }
    assert_eq!(copy("'&' '&' &").sources, [b"&"]);
    assert!(complaint("a b&").starts_with("column 4: a space belongs before this &"));
    assert!(complaint("a 'b c'd&").starts_with("column 9: a space"));
    assert!(complaint("a & b").starts_with("column 3: the end of a line is the place"));
    assert_eq!(complaint("&"), "column 1: the names are missing");
    assert_eq!(complaint("a &"), "column 3: the destination is missing");
    assert!(complaint("--wait 3 &").starts_with("column 10: only a copy"));
}

#[test]
fn words_to_jobs() {
    assert_eq!(request("--cancel 7"), Request::Cancel(Which::One(7)));
    assert_eq!(request("--cancel=all"), Request::Cancel(Which::All));
    assert_eq!(request("--wait 1 # it"), Request::Wait(1));
    assert_eq!(request("--pause 2"), Request::Pause(2));
    assert_eq!(request("--resume-job=3"), Request::ResumeJob(3));
    assert_eq!(
        complaint("--wait all"),
        "column 8: --wait needs the number of a job"
    );
    assert!(complaint("--wait -1").starts_with("column 8: a job has a number"));
    assert!(complaint("--cancel +1").ends_with("; not +1"));
    assert_eq!(
        complaint("a b --pause 3"),
        "column 13: --pause stands alone on its line"
    );
    assert_eq!(
        complaint("--pause 3 a"),
        "column 11: --pause stands alone on its line"
    );
    assert_eq!(
        complaint("--cancel 1 --cancel 2"),
        "column 21: --cancel takes one job a line"
    );
    assert_eq!(complaint("--cancel"), "column 1: no value for --cancel");
}

#[test]
fn options_of_how() {
    assert_eq!(
        options("--method=map-map --chunk 64KiB").method,
        Some(Method::MapMap)
    );
    assert_eq!(options("--method auto").method, None);
    for method in Method::ALL {
        assert_eq!(
            options(&format!("--method {}", method.name())).method,
            Some(method)
        );
    }
    for (text, bytes) in [("1G", 1 << 30), ("131072", 128 << 10), ("3m", 3 << 20)] {
        assert_eq!(options(&format!("--chunk={text}")).chunk, bytes);
    }
    assert_eq!(options("--workers=auto").workers, None);
    assert_eq!(options("--workers 3").workers, NonZeroU16::new(3));
    assert_eq!(options("--reflink").reflink, Reflink::Always);
    assert_eq!(options("--reflink=never").reflink, Reflink::Never);
    assert_eq!(options("--sparse=always").sparse, Sparse::Always);
    assert_eq!(options("--limit 100M").limit, NonZeroU64::new(100 << 20));
    assert_eq!(options("--priority idle").priority, Priority::Idle);
    let all = options("--direct --sync --verify --resume -x -n -T");
    assert!(all.direct && all.sync && all.verify && all.resume);
    assert!(all.one_file_system && all.no_clobber && all.no_target_directory);
    assert!(options("--inplace").inplace);
    // The last word counts, as with cp, wherever it stands.
    assert_eq!(copy("--chunk 1M a --chunk 2M b").options.chunk, 2 << 20);
}

#[test]
fn options_of_trees_and_attributes() {
    assert!(options("-rn").recursive && options("-rn").no_clobber && options("-R").recursive);
    let archive = options("-a");
    assert_eq!((archive.recursive, archive.preserve), (true, Preserve::ALL));
    let usual = Preserve {
        ownership: true,
        ..Preserve::DEFAULT
    };
    assert_eq!(options("-p").preserve, usual);
    assert_eq!(options("--preserve").preserve, usual);
    assert!(options("--preserve=xattr,links").preserve.xattr);
    assert_eq!(options("--no-preserve=all").preserve, Preserve::NONE);
    let without = Preserve {
        ownership: false,
        ..Preserve::ALL
    };
    assert_eq!(options("-a --no-preserve=ownership").preserve, without);
    assert_eq!(
        options("--no-preserve=ownership -a").preserve,
        Preserve::ALL
    );
    assert_eq!(
        options("--no-preserve=all -p --no-preserve=mode,ownership --preserve=links").preserve,
        Preserve {
            timestamps: true,
            links: true,
            ..Preserve::NONE
        }
    );
    let globs = options("--exclude '*.o' --exclude=-x");
    assert_eq!(globs.exclude, [b"*.o".to_vec(), b"-x".to_vec()]);
    assert_eq!(
        complaint("--exclude '*.o' --exclude '[a' -r a b &"),
        "column 27: --exclude takes a glob (unclosed character class; missing ']'); not '[a'"
    );
    let said = complaint(r"--exclude=$'[\x02-\x01]' a b");
    assert!(said.starts_with("column 1: --exclude takes a glob (invalid range; "));
    assert!(!said.chars().any(char::is_control), "{said}");
    assert!(complaint("--preserve=context a b").starts_with("column 1: mode, ownership"));
}

#[test]
fn options_of_what_stands_there() {
    let backup = |line| options(line).backup;
    assert_eq!(backup("-b"), Backup::Existing("~".into()));
    assert_eq!(backup("-bS.old"), Backup::Existing(".old".into()));
    assert_eq!(backup("-S .old"), Backup::Existing(".old".into()));
    assert_eq!(backup("--backup=t"), Backup::Numbered);
    assert_eq!(
        backup("--backup=simple --suffix=x"),
        Backup::Simple("x".into())
    );
    assert_eq!(backup("--backup=none -S x"), Backup::None);
    assert!(options("-u").update && options("--update").update && options("--update=older").update);
    assert!(options("--update=none").no_clobber && !options("--update=all").update);
    assert!(complaint("-S a/b a b").starts_with("column 4: a suffix is part of a name"));
}

#[test]
fn a_complaint_names_the_column_and_what_is_right() {
    assert_eq!(complaint("a"), "column 2: the destination is missing");
    assert_eq!(complaint("--chunk=1M"), "column 11: the names are missing");
    assert_eq!(complaint("-t d"), "column 5: the names are missing");
    assert_eq!(complaint("--"), "column 3: the names are missing");
    assert_eq!(complaint("  --foo a b"), "column 3: unknown option --foo");
    assert_eq!(complaint("a b -rq"), "column 5: unknown option -q");
    assert_eq!(
        complaint("a --metod=x b"),
        "column 3: unknown option --metod; perhaps --method?"
    );
    assert_eq!(complaint("a --chunk"), "column 3: no value for --chunk");
    assert_eq!(complaint("--sync=1 a b"), "column 1: --sync takes no value");
    assert_eq!(
        complaint("a --method=fast b"),
        "column 3: --method is auto, reflink, map-write, map-map, copy-range, read-write; not fast"
    );
    assert_eq!(
        complaint("a --workers 0 b"),
        "column 13: workers are auto, or 1 to 64; not 0"
    );
    assert_eq!(
        complaint("--help"),
        "column 1: `cat .copy` tells what a line may say"
    );
    assert!(complaint("a 'b").starts_with("column 3: the quote"));
    assert!(
        complaint("--limit=0 a b").starts_with("column 1: bytes a second are a number above 0")
    );
}

#[test]
fn chunks_out_of_bounds_are_refused() {
    let sizes = [
        "0",
        "4K",
        "65537",
        "2G",
        "1T",
        "-1",
        "M",
        "1KB",
        "x",
        "99999999999G",
        "+1M",
        "1.5M",
    ];
    for size in sizes {
        let said = complaint(&format!("a --chunk {size} b"));
        assert_eq!(
            said,
            format!(
                "column 11: a chunk is 64K to 1G, a multiple of 4096; not {}",
                quoted(size)
            )
        );
    }
}

#[test]
fn what_contradicts_itself_is_refused_at_the_second_word() {
    let second = [
        ("--inplace --resume", "--resume goes on from a part"),
        ("--reflink=always --direct", "shared extents move no bytes"),
        (
            "--reflink=never --method=reflink",
            "--method=reflink shares",
        ),
        ("--reflink --method=map-map", "--reflink=always leaves"),
        ("--reflink --sparse=never", "shared extents have"),
        ("--direct --method=map-write", "--direct goes past"),
        ("--inplace -b", "--backup renames"),
        (
            "--inplace --sparse=always",
            "--sparse=always leaves out zeros",
        ),
        ("-n --backup", "-n replaces nothing"),
        ("-T -t", "-t names a directory"),
    ];
    for (line, why) in second {
        let column = line.find(' ').unwrap() + 2;
        let said = complaint(&format!("{line} a b"));
        let column = if line.ends_with("-t") {
            column + 3
        } else {
            column
        };
        assert!(
            said.starts_with(&format!("column {column}: {why}")),
            "{line}: {said}"
        );
    }
    assert!(complaint("-T a b c").contains("-T takes one SRC"));
}

#[test]
fn many_words_take_no_time() {
    let line = "--exclude=x ".repeat(5000) + "--bad a b";
    assert!(complaint(&line).starts_with("column 60001: unknown option"));
}

/// Words that lines are made of.
fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "-r",
        "-R",
        "-a",
        "-p",
        "-n",
        "-u",
        "-T",
        "-t",
        "-x",
        "-b",
        "-S",
        "-rn",
        "-bS",
        "&",
        "b&",
        "--",
        "-",
        "--preserve",
        "--preserve=mode,all",
        "--no-preserve=links",
        "--backup=t",
        "--suffix=.o",
        "--sparse=never",
        "--reflink",
        "--reflink=never",
        "--method",
        "map-map",
        "--method=reflink",
        "--chunk=1M",
        "--workers=2",
        "--direct",
        "--inplace",
        "--sync",
        "--verify",
        "--resume",
        "--exclude=*",
        "--limit=1k",
        "--priority=idle",
        "--cancel",
        "all",
        "--wait=1",
        "--pause",
        "3",
        "--resume-job=4",
        "--help",
        "#",
        "''",
        "'a b'",
        "$'\\377'",
        "--update=none",
        "-=",
        "--=",
        "-t=",
        "--chunk=",
        "-\u{e9}",
        "'",
        "\\",
    ]);
    prop_oneof![known.prop_map(str::to_owned), "[-=a-z&'\"\\\\ ]{0,8}"]
}

#[test]
fn an_ampersand_after_empty_quotes_is_glued_to_a_word() {
    for line in [r#"a b ""&"#, "a ''&", r#"a b "" ''&"#] {
        let said = parse(line.as_bytes()).unwrap_err().detail.unwrap();
        assert!(said.contains("a space belongs before this &"), "{said}");
    }
    assert!(copy("a b &").background);
}

proptest! {
    #[test]
    fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&line);
    }

    #[test]
    fn no_line_of_known_words_makes_it_panic(words in prop::collection::vec(word(), 0..10)) {
        let line = words.join(" ");
        match parse(line.as_bytes()) {
            Ok(Some(Request::Copy(copy))) => {
                prop_assert!(!copy.sources.is_empty());
                prop_assert!(!copy.background || line.contains(" &") || line.contains("\t&"), "{}", line);
            }
            Ok(_) => {}
            Err(fail) => {
                let said = String::from(fail.detail.unwrap());
                let column = said.strip_prefix("column ").and_then(|rest| rest.split_once(':'));
                let column: usize = column.unwrap().0.parse().unwrap();
                prop_assert!((1..=line.len() + 1).contains(&column), "{}: {}", line, said);
                prop_assert!(!said.chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn any_names_are_read_back(
        names in prop::collection::vec(prop::collection::vec(1u8..=255, 0..40), 2..5),
        background: bool,
    ) {
        let quoted: Vec<_> = names.iter().map(|name| quote(name)).collect();
        let end = if background { " &" } else { "" };
        let line = format!("-- {}{end}", quoted.join(" "));
        let read = copy(&line);
        let (destination, sources) = names.split_last().unwrap();
        prop_assert_eq!(&read.sources, sources);
        prop_assert_eq!(&read.destination, destination);
        prop_assert_eq!(read.background, background);
    }
}
