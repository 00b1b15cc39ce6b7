//! git, make and a compiler at work on the mount.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::{Who, empty};
use crate::support::{Scratch, content, soak, write_file};

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
    make -q program
    sed -i 's/sum \\* 31/sum * 33/' module_1.c
    touch all.h
    ! make -q program
    make -s -j2 program
    ./program
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
