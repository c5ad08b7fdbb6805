//! The progress lines of `pg_basebackup --progress --verbose` (`progress_report` in pg_basebackup.c, `LC_ALL=C`).

/// Bytes done and in total, from a line like `22953/22953 kB (100%), 0/1 tablespace (n1/global/pg_control )`.
///
/// The total is an estimate of the server and is raised by pg_basebackup when it proves too low.
pub(super) fn parse(line: &str) -> Option<(u64, u64)> {
    let (done, rest) = line.trim_start().split_once('/')?;
    let (total, _) = rest.split_once(" kB (")?;
    let kilobytes = |text: &str| text.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(1024));
    Some((kilobytes(done)?, kilobytes(total)?))
}

/// How an old directory is named in `--tablespace-mapping=OLD=NEW`: `=` needs a backslash (`tablespace_list_append`).
pub(super) fn mapping(from: &str, to: &str) -> String {
    format!("--tablespace-mapping={}={}", from.replace('=', "\\="), to.replace('=', "\\="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_progress_and_nothing_else() {
        let line = "  22953/45906 kB (50%), 0/1 tablespace (/data/n1/base/5/1249          )";
        assert_eq!(parse(line), Some((22953 * 1024, 45906 * 1024)));
        assert_eq!(parse("22953/22953 kB (100%), 1/1 tablespace"), Some((22953 * 1024, 22953 * 1024)));
        assert_eq!(parse("pg_basebackup: write-ahead log start point: 0/2000028 on timeline 1"), None);
        assert_eq!(parse("pg_basebackup: base backup completed"), None);
    }

    #[test]
    fn mapping_protects_the_sign_in_the_middle() {
        assert_eq!(mapping("/a=b", "/c"), "--tablespace-mapping=/a\\=b=/c");
    }
}
