//! The page, in a real browser.

use std::process::Command;

use super::Bench;
use crate::support::{Scratch, output, read_file, tool};

/// The browser draws the page, and finds nothing wrong with it. `CORFS_SCREENSHOT` names a file for
/// the picture, for those who want to look.
#[test]
fn the_page_is_drawn_by_a_browser_without_a_complaint() {
    // Not a need that CI insists on: to install a browser takes longer than all else it installs.
    if tool("chromium").is_none() {
        eprintln!("SKIP: chromium is not installed");
        return;
    }
    let bench = Bench::new();
    bench.measure("fault --size=1M --windows=64K,256K,1M --rounds=2 --warmup=0");
    let home = Scratch::new();
    let page = bench.found.path().join("run.html");
    let picture = std::env::var_os("CORFS_SCREENSHOT")
        .map_or_else(|| home.path().join("page.png"), Into::into);
    let browse = |what: &str| {
        let profile = home.dir(&format!("profile{}", what.len()));
        let mut command = Command::new("timeout");
        command
            .args([
                "60",
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
            ])
            .args([
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args([
                "--disable-sync",
                "--enable-logging=stderr",
                "--window-size=1000,3200",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(what)
            .arg(format!("file://{}", page.display()))
            .env("HOME", home.path());
        let out = output(&mut command);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        assert!(!said.contains("CONSOLE"), "{said}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let tree = browse("--dump-dom");
    // What the browser has understood: a plot for each of four works, and one or two of the sweep.
    assert!(tree.matches("<svg").count() >= 5, "{tree}");
    assert!(tree.contains("What each cost"), "{tree}");
    browse(&format!("--screenshot={}", picture.display()));
    let picture = read_file(&picture);
    assert!(picture.starts_with(b"\x89PNG"));
    assert!(
        picture.len() > 20_000,
        "an empty page: {} bytes",
        picture.len()
    );
}
