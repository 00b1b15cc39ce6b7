//! For unit tests of all floors.

/// Says why a test, or a part of it, can't run here; under `CORFS_REQUIRE_ALL=1` that is a
/// failure.
pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os("CORFS_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "CORFS_REQUIRE_ALL=1, but: {reason}"
    );
    eprintln!("SKIP: {reason}");
}
