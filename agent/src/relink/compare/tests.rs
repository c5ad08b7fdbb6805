//! Comparisons of hand-made entries; whole directories are compared in `tests/relink.rs`.

use super::*;

fn leader(path: &str) -> ManifestEntry {
    ManifestEntry {
        root: "data".into(),
        path: path.into(),
        kind: Kind::File.into(),
        size: 8192,
        mode: 0o600,
        ..ManifestEntry::default()
    }
}

fn here(path: &str) -> Found {
    Found {
        root: "data".into(),
        path: path.into(),
        file: PathBuf::new(),
        kind: Kind::File,
        size: 8192,
        mode: 0o600,
        inode: (1, 2),
        links: 2,
        target: String::new(),
        fork: None,
        unlogged: false,
    }
}

#[test]
fn every_attribute_counts() {
    let linked = ManifestEntry { linked_to: "base/5/1".into(), ..leader("base/5/1") };
    assert_eq!(attributes(&linked, &here("base/5/1"), true), None);
    assert_eq!(attributes(&leader("f"), &here("f"), false), None);
    let told = |leader: &ManifestEntry, here: &Found, shares| attributes(leader, here, shares).unwrap();
    assert!(told(&linked, &here("base/5/1"), false).contains("but not here"));
    assert!(told(&leader("f"), &here("f"), true).contains("a copy on the leader"));
    assert!(
        told(&leader("f"), &Found { size: 1, ..here("f") }, false).contains("8192 bytes on the leader, 1")
    );
    assert!(told(&leader("f"), &Found { mode: 0o640, ..here("f") }, false).contains("mode 0600"));
    let link = |target: &str| Found { kind: Kind::Symlink, target: target.into(), ..here("f") };
    assert!(told(&leader("f"), &link("/x"), false).contains("a symbolic link here"));
    let leaders = ManifestEntry { kind: Kind::Symlink.into(), target: "/y".into(), ..leader("f") };
    assert!(told(&leaders, &link("/x"), false).contains("leads to /y"));
    assert_eq!(attributes(&leaders, &link("/y"), true), None);
}

#[test]
fn the_first_differences_are_told_and_the_rest_counted() {
    let mut verdict = Verdict::default();
    for number in 0..25 {
        verdict.count(Checked { file: true, difference: Some(number.to_string()), ..Checked::default() });
    }
    let output = verdict.output();
    assert!(!output.equal);
    assert_eq!(output.differences.len(), TOLD + 1);
    assert_eq!(output.differences[TOLD], "and 5 more");
    assert!(!Verdict::default().output().equal, "nothing compared is nothing proven");
}

#[tokio::test]
async fn a_broken_manifest_is_an_error_and_never_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root { name: "data".into(), dir: dir.path().into(), start: String::new(), wal: None };
    let trees = vec![Tree { root, twin: dir.path().into() }];
    let manifest = tokio_stream::iter([Err(Status::failed_precondition("a server runs"))]);
    let result = compare(manifest, trees, |_| {}).await;
    assert!(matches!(result, Err(CompareError::Leader(_))));
}

#[tokio::test]
async fn an_absent_directory_and_an_unknown_tablespace_are_differences() {
    let root = Root { name: "data".into(), dir: "/nonexistent".into(), start: String::new(), wal: None };
    let trees = vec![Tree { root, twin: "/nonexistent".into() }];
    let unknown = ManifestEntry { root: "tblspc/1".into(), ..leader("PG_18_2/5/1") };
    let manifest = tokio_stream::iter([Ok(leader("a")), Ok(unknown)]);
    let output = compare(manifest, trees, |_| {}).await.unwrap();
    assert_eq!(output.differences, ["data: a: missing here", "tblspc/1: PG_18_2/5/1: missing here"]);
}
