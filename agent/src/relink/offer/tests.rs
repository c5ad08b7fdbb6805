//! Offers on plain directories.

use super::*;
use crate::relink::arguments::parse;

fn offer_in(root: &Path) -> Offer {
    let root = root.canonicalize().unwrap();
    for directory in ["15", "18/global", "ts/PG_15_1", "ts/PG_18_2", "secret"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::write(root.join("18/global/pg_control"), "control").unwrap();
    Offer {
        operation: "shop-1a2b3c".into(),
        readers: vec!["db4".into()],
        seed: root.join("15"),
        data: root.join("18"),
        wal: None,
        tablespaces: vec![OfferedTablespace {
            oid: 16400,
            location: root.join("ts"),
            old: "PG_15_1".into(),
            new: "PG_18_2".into(),
        }],
        control: control_digest(&root.join("18")).unwrap(),
    }
}

fn ask(offer: &Offer, paths: &[String]) -> std::result::Result<Vec<String>, String> {
    let mut line: Vec<String> = ["rsync", "--server", "--sender", "-rRe.", "."].map(str::to_owned).to_vec();
    line.extend(paths.iter().cloned());
    offer.sender_arguments(&parse(&line)?)
}

#[test]
fn is_kept_and_withdrawn() {
    let state = tempfile::tempdir().unwrap();
    let offer = offer_in(state.path());
    assert_eq!(Offer::load(state.path(), "shop-1a2b3c").unwrap(), None);
    offer.save(state.path()).unwrap();
    assert_eq!(Offer::load(state.path(), "shop-1a2b3c").unwrap(), Some(offer));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &state.path().join("offers/shop-1a2b3c.json").metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    Offer::remove(state.path(), "shop-1a2b3c").unwrap();
    Offer::remove(state.path(), "shop-1a2b3c").unwrap();
    assert_eq!(Offer::load(state.path(), "shop-1a2b3c").unwrap(), None);
    for name in ["", "..", ".x", "a/b", "../../etc/passwd", "a\0b"] {
        assert!(Offer::load(state.path(), name).is_err(), "{name:?}");
    }
}

#[test]
fn serves_exactly_the_offered_directories() {
    let root = tempfile::tempdir().unwrap();
    let offer = offer_in(root.path());
    let at = root.path().canonicalize().unwrap();
    let path = |base: &str, below: &str| format!("{}/./{below}", at.join(base).display()).replace("//", "/");
    let both = ask(&offer, &[path("", "15"), path("", "18")]).unwrap();
    assert_eq!(both[..4], ["--server", "--sender", "-rRe.", "."]);
    assert_eq!(both[4..], [path("", "15"), path("", "18")]);
    ask(&offer, &[path("ts", "PG_15_1"), path("ts", "PG_18_2")]).unwrap();
    std::os::unix::fs::symlink("secret", at.join("link")).unwrap();
    std::os::unix::fs::symlink("15", at.join("alias")).unwrap();
    for (base, below, why) in [
        ("", "secret", "not offered"),
        ("", "15/global", "does not exist"),
        ("", "18/global", "not offered"),
        ("", "ts", "not offered"),
        ("", "", "not offered"),
        ("", "link", "symbolic link"),
        ("", "alias", "symbolic link"),
        ("", "*", "does not exist"),
        ("nowhere", "15", "does not exist"),
    ] {
        let error = ask(&offer, &[path("", "15"), path(base, below)]).unwrap_err();
        assert!(error.contains(why), "{base} {below}: {error}");
    }
}

#[test]
fn a_base_reached_through_a_link_is_written_out() {
    let root = tempfile::tempdir().unwrap();
    let offer = offer_in(root.path());
    let at = root.path().canonicalize().unwrap();
    std::os::unix::fs::symlink(&at, at.join("mount")).unwrap();
    let arguments = ask(&offer, &[format!("{}/mount/./15", at.display())]).unwrap();
    assert_eq!(arguments[4], format!("{}/./15", at.display()));
}

#[test]
fn only_readers_and_only_while_nothing_has_run() {
    let root = tempfile::tempdir().unwrap();
    let offer = offer_in(root.path());
    offer.save(root.path()).unwrap();
    let peer = |role, name: &str| Peer { role, name: name.into() };
    let code = |peer: &Peer, operation: &str| find(root.path(), peer, operation).map_err(|s| s.code());
    let reader = peer(Role::Agent, "db4");
    assert!(code(&reader, "shop-1a2b3c").is_ok());
    assert_eq!(code(&peer(Role::Agent, "db9"), "shop-1a2b3c"), Err(tonic::Code::PermissionDenied));
    assert_eq!(code(&peer(Role::Operator, "db4"), "shop-1a2b3c"), Err(tonic::Code::PermissionDenied));
    assert_eq!(code(&reader, "shop-ffffff"), Err(tonic::Code::NotFound));
    // A pid file counts when the process is alive and works in the directory; this one works elsewhere.
    std::fs::write(offer.seed.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
    assert!(code(&reader, "shop-1a2b3c").is_ok());
    std::fs::write(offer.data.join("global/pg_control"), "started once").unwrap();
    assert_eq!(code(&reader, "shop-1a2b3c"), Err(tonic::Code::FailedPrecondition));
}

#[test]
fn a_running_server_closes_the_offer() {
    let root = tempfile::tempdir().unwrap();
    let offer = offer_in(root.path());
    let mut server = std::process::Command::new("sleep").arg("60").current_dir(&offer.data).spawn().unwrap();
    std::fs::write(offer.data.join("postmaster.pid"), format!("{}\n", server.id())).unwrap();
    let stale = offer.stale();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(stale.is_some_and(|why| why.contains("runs in")));
    assert_eq!(offer.stale(), None);
}
