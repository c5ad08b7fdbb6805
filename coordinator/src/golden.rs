//! Golden files for tests: texts that people read, kept under version control and compared byte for byte.

use std::path::Path;

/// Fails when `text` differs from the file (a path below the repository's root). With `PGLEAP_UPDATE_GOLDEN` set, writes
/// it instead.
pub(crate) fn check(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    if std::env::var_os("PGLEAP_UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        return std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        kept == text,
        "{file} is stale from line {}: look at the difference, and if it is meant, \
         run the test again with PGLEAP_UPDATE_GOLDEN=1\n--- now:\n{text}",
        differs.unwrap_or_else(|| kept.lines().count().min(text.lines().count())) + 1,
    );
}
