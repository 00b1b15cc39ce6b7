//! git, make, cargo and two compilers at work on the mount.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::{Who, bounded, empty};
use crate::support::{Need, Scratch, content, require, run, soak, write_file};

/// A few hundred files for a repository: words, and bytes that no delta fits.
fn write_files(root: &Path, count: u64) {
    for index in 0..count {
        let folder = root.join(format!("part-{}/of-{}", index % 7, index % 3));
        fs::create_dir_all(&folder).expect("mkdir");
        let mut words = String::new();
        for line in 0..index % 50 {
            let _ = writeln!(words, "line {line} of file {index}");
        }
        write_file(&folder.join(format!("words-{index}.txt")), words.as_bytes());
        if index % 10 == 0 {
            let bytes = content(index, 0, 20_000);
            write_file(&folder.join(format!("bytes-{index}.bin")), &bytes);
        }
    }
}

/// From an empty folder with `files` to a history with merges, packed, cloned and checked. Prints
/// the ids of all commits, which depend on every byte and mode.
const GIT: &str = "
    export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
    export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_AUTHOR_DATE='2001-02-03T04:05:06Z'
    export GIT_COMMITTER_NAME=C GIT_COMMITTER_EMAIL=c@example.org
    export GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE
    git init -q -b main files
    cd files
    chmod +x part-0/of-0/words-0.txt
    git add .
    git commit -qm first
    for branch in one two three; do
        git checkout -q -b $branch main
        for file in part-1/of-?/words-*.txt; do echo $branch >$branch-${file##*/}; done
        git mv part-2 part-2-$branch
        git add .
        git commit -qm $branch
        git checkout -q main
        git merge -q --no-ff -m \"merge $branch\" $branch
        git mv part-2-$branch part-2
        git commit -qm \"back from $branch\"
    done
    [ -z \"$(git status --porcelain)\" ]
    git fsck --full --strict
    cd ..
    git clone -q files clone
    git clone -q --no-local files copy
    cd copy
    git checkout -q HEAD~2
    git checkout -q main
    git worktree add -q ../worktree HEAD~1
    git -C ../worktree rm -rq part-4
    git -C ../worktree commit -qm 'without part 4, elsewhere'
    git -C ../worktree log -1 --format='elsewhere %H %T'
    git worktree move ../worktree ../moved
    mv ../moved ../by-hand
    git worktree repair ../by-hand
    [ -z \"$(git -C ../by-hand status --porcelain)\" ]
    [ \"$(git worktree list --porcelain | grep -c ^worktree)\" = 2 ]
    git worktree remove ../by-hand
    [ ! -e ../by-hand ]
    git rm -rq part-3
    git commit -qm 'without part 3'
    git reset -q --hard HEAD~1
    git gc -q --aggressive --prune=now
    git fsck --full --strict
    [ -z \"$(git status --porcelain)\" ]
    cd ..
    diff -r --exclude=.git files clone
    diff -r --exclude=.git files copy
    git -C copy log --all --format=%H%T
";

fn git_works(who: Who) {
    if !who.can(&["git", "diff"]) {
        return;
    }
    let scratch = Scratch::new();
    let native = who.folder(&scratch, "native");
    let source = who.folder(&scratch, "source");
    let count = 300.max(soak(2000));
    who.apart(|| write_files(&native.join("files"), count));
    let expected = who.script(&native, GIT, &[]);
    let mount = who.mount(&source);
    who.apart(|| write_files(&mount.path().join("files"), count));
    assert_eq!(who.script(mount.path(), GIT, &[]), expected);
    drop(mount);
    // What is on disk is whole without us.
    let check = "export GIT_CONFIG_GLOBAL=/dev/null
        for it in files clone copy; do git -C $it fsck --full --strict; done";
    who.script(&source, check, &[]);
}

#[test]
fn git_makes_the_same_history_as_root() {
    git_works(Who::Root);
}

#[test]
fn git_makes_the_same_history_as_an_ordinary_user() {
    git_works(Who::User);
}

/// A program of some modules, each of which adds its number.
fn write_program(root: &Path, modules: u32) {
    let mut header = String::from("#pragma once\n");
    let mut main = String::from("#include <stdio.h>\n#include \"all.h\"\n");
    main.push_str("int main(void) {\n    unsigned long sum = 0;\n");
    for index in 0..modules {
        let _ = writeln!(header, "unsigned long module_{index}(unsigned long sum);");
        let _ = writeln!(main, "    sum = module_{index}(sum);");
        let text = format!(
            "#include \"all.h\"\nstatic unsigned char table[{}] = {{{index}}};\n\
             unsigned long module_{index}(unsigned long sum) {{\n\
             \x20   for (unsigned i = 0; i < sizeof table; i++) sum = sum * 31 + table[i] + i;\n\
             \x20   return sum;\n}}\n",
            1000 + index * 77
        );
        write_file(&root.join(format!("module_{index}.c")), text.as_bytes());
    }
    main.push_str("    printf(\"%lu\\n\", sum);\n    return 0;\n}\n");
    write_file(&root.join("all.h"), header.as_bytes());
    write_file(&root.join("main.c"), main.as_bytes());
    let makefile = "CC = gcc\nCFLAGS = -O1 -Wall -Werror -MMD\n\
        objects = $(patsubst %.c,%.o,$(wildcard *.c))\n\
        program: libmodules.a main.o\n\t$(CC) -o $@ main.o libmodules.a\n\
        libmodules.a: $(filter-out main.o,$(objects))\n\tar rcs $@ $^\n\
        clean:\n\trm -f program *.o *.d *.a\n\
        -include *.d\n";
    write_file(&root.join("Makefile"), makefile.as_bytes());
}

/// Builds, runs, finds nothing more to do, builds what one changed header needs, and runs again.
const MAKE: &str = "
    make -s -j2 program
    ./program
    sha256sum program *.a *.o *.d
    make -q program
    sed -i 's/sum \\* 31/sum * 33/' module_1.c
    touch all.h
    ! make -q program
    make -s -j2 program
    ./program
    sha256sum program *.a *.o *.d
    make -q program
    cp program renamed
    mv renamed program
    ./program
    make -s clean
    ls
";

#[test]
fn a_program_is_built_and_run_on_the_mount() {
    let who = Who::Root;
    if !who.can(&["gcc", "make"]) {
        return;
    }
    let scratch = Scratch::new();
    let folder = who.folder(&scratch, "source");
    write_program(&folder, 12);
    let expected = who.script(&folder, MAKE, &[]);
    empty(&folder);
    let mount = who.mount(&folder);
    write_program(mount.path(), 12);
    assert_eq!(who.script(mount.path(), MAKE, &[]), expected);
}

/// A crate of a library with some modules and a program, both without dependencies.
fn write_crate(root: &Path, modules: u32) {
    fs::create_dir_all(root.join("src/bin")).expect("mkdir");
    let manifest = "[package]\nname = \"sums\"\nversion = \"1.0.0\"\nedition = \"2021\"\n\
        [[bin]]\nname = \"program\"\npath = \"src/bin/program.rs\"\n";
    write_file(&root.join("Cargo.toml"), manifest.as_bytes());
    let mut library = String::new();
    let mut calls = String::new();
    for index in 0..modules {
        let _ = writeln!(library, "pub mod part_{index};");
        let _ = writeln!(calls, "    sum = sums::part_{index}::add(sum);");
        let text = format!(
            "pub fn add(sum: u64) -> u64 {{\n\
             \x20   (0..{}u64).fold(sum, |sum, x| sum.wrapping_mul(31).wrapping_add(x))\n}}\n",
            100 + index * 7
        );
        write_file(&root.join(format!("src/part_{index}.rs")), text.as_bytes());
    }
    write_file(&root.join("src/lib.rs"), library.as_bytes());
    let main =
        format!("fn main() {{\n    let mut sum = 0u64;\n{calls}    println!(\"{{sum}}\");\n}}\n");
    write_file(&root.join("src/bin/program.rs"), main.as_bytes());
}

/// Builds the crate of folder `$1` under the name `$2`, which goes into what is built; finds nothing
/// more to do, builds what one change needs, and runs both.
const CARGO: &str = "
    mount --bind \"$1\" \"$2\"
    cd \"$2\"
    cargo build --offline --quiet
    target/debug/program
    sha256sum target/debug/program
    cargo build --offline --verbose 2>&1 | grep -c Fresh
    sed -i 's/mul(31)/mul(33)/' src/part_1.rs
    cargo build --offline --quiet
    target/debug/program
    sha256sum target/debug/program
    cargo clean --offline --quiet
    ls
";

#[test]
fn a_crate_is_built_the_same_on_the_mount() {
    let who = Who::Root;
    if !who.can(&["unshare", "mount"]) || !require(&[Need::Root]) {
        return;
    }
    // The one that runs this test, not rustup's stand-in, which looks for its home.
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| env!("CARGO").into());
    let tools = Path::new(&cargo).parent().expect("a folder");
    let scratch = Scratch::new();
    let folder = who.folder(&scratch, "source");
    let (name, home) = (scratch.dir("name"), scratch.dir("home"));
    let build = |folder: &Path| {
        write_crate(folder, 8);
        let path = format!("{}:/usr/bin:/bin:/usr/sbin", tools.display());
        run(bounded("unshare")
            .args(["--mount", "sh", "-euc", CARGO, "sh"])
            .args([folder, &name])
            .env_clear()
            .env("PATH", path)
            .env("CARGO_HOME", &home)
            .current_dir("/"))
    };
    let expected = build(&folder);
    assert!(expected.lines().count() > 6, "{expected}");
    empty(&folder);
    let mount = who.mount(&folder);
    assert_eq!(build(mount.path()), expected);
}
