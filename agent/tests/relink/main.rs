//! The three relink steps against each other: real rsync, real jobs, real mutual TLS, plain directories.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fixture;

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pgleap_agent::peer_client;
use pgleap_agent::relink::offer::Offer;
use pgleap_agent::step::offer_files::OfferFilesStep;
use pgleap_agent::step::relink::RelinkStep;
use pgleap_agent::step::verify_relink::VerifyRelinkStep;
use pgleap_agent::step::{Probe, Step};
use pgleap_proto::agent::{RsyncFrame, RsyncOpen, rsync_frame};
use pgleap_proto::step::{Output, VerifiedOutput, output};

use fixture::{Fixture, OPERATION, PAGE, RELATIONS, relation_bytes, write};

async fn offered() -> Fixture {
    let fixture = Fixture::new().await;
    let (step, cx) = (OfferFilesStep(fixture.offer()), fixture.context("db3", "offer"));
    assert_eq!(step.probe(&cx).await.unwrap(), Probe::Ready);
    step.act(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_eq!(step.probe(&cx).await.unwrap(), Probe::Done(Output::default()));
    fixture
}

async fn relink(fixture: &Fixture) {
    let (step, cx) = (RelinkStep(fixture.relink()), fixture.context("db4", "relink"));
    assert_eq!(step.probe(&cx).await.unwrap(), Probe::Ready);
    step.act(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_eq!(step.probe(&cx).await.unwrap(), Probe::Done(Output::default()));
}

async fn verify(fixture: &Fixture, sample_percent: u32) -> VerifiedOutput {
    let (step, cx) = (VerifyRelinkStep(fixture.verify(sample_percent)), fixture.context("db4", "verify"));
    step.act(&cx).await.unwrap();
    match step.verify(&cx).await.unwrap().kind {
        Some(output::Kind::Verified(verified)) => verified,
        other => panic!("{other:?}"),
    }
}

fn inode(path: &Path) -> u64 {
    path.metadata().unwrap().ino()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn links_what_is_here_copies_the_rest_and_proves_it() {
    let fixture = offered().await;
    let kept = inode(&fixture.at("n4 a/15/base/5/16500"));
    relink(&fixture).await;

    for relation in RELATIONS {
        let (seed, data) = (fixture.at("n4 a/15").join(relation), fixture.at("n4 a/18").join(relation));
        assert_eq!(inode(&seed), inode(&data), "{relation}");
        assert_eq!(
            std::fs::read(&data).unwrap(),
            relation_bytes(relation, 0xABCD),
            "the replica's own bytes"
        );
    }
    assert_eq!(inode(&fixture.at("n4 a/18/base/5/16500")), kept, "nothing was copied that was there");
    let space = |major: &str| inode(&fixture.at("ts4").join(major).join("5/16500"));
    assert_eq!(space("PG_15_202209061"), space("PG_18_202506291"));
    assert_eq!(std::fs::read_link(fixture.at("n4 a/18/pg_tblspc/16400")).unwrap(), fixture.at("ts4"));
    assert_eq!(text(&fixture.at("n4 a/18/base/5/1259")), "new catalog");
    assert_eq!(text(&fixture.at("n4 a/18/pg_wal/000000010000000000000037")), "new wal");
    assert_eq!(
        text(&fixture.at("n4 a/18/postgresql.auto.conf")),
        "work_mem = '7MB'\nport = '5404'\nunix_socket_directories = '/run/n4'\ncluster_name = 'shop-db4'\n"
    );
    assert!(text(&fixture.at("n4 a/18/pgleap.created")).contains(OPERATION));
    // The old server cannot be started any more, its own files are its own, and its neighbours are left alone.
    assert!(!fixture.at("n4 a/15/global/pg_control").exists());
    assert_eq!(text(&fixture.at("n4 a/15/postgresql.auto.conf")), "port = '5404'\n");
    assert_eq!(text(&fixture.at("n4 a/15/pg_wal/000000010000000000000001")), "replica's wal");
    assert_eq!(text(&fixture.at("n4 a/other/precious")), "not ours");

    let verified = verify(&fixture, 100).await;
    assert_eq!(verified.differences, Vec::<String>::new());
    assert!(verified.equal);
    assert_eq!(verified.linked_files, 6);
    // Eight copies; of the linked ones all but the free space map.
    assert_eq!((verified.copied_files, verified.hashed_files), (8, 13));

    let step = RelinkStep(fixture.relink());
    let cx = fixture.context("db4", "relink");
    step.undo(&cx).await.unwrap();
    step.undo(&cx).await.unwrap();
    assert!(!fixture.at("n4 a/18").exists() && !fixture.at("ts4/PG_18_202506291").exists());
    assert_eq!(text(&fixture.at("n4 a/other/precious")), "not ours");
    let offer = OfferFilesStep(fixture.offer());
    offer.undo(&fixture.context("db3", "offer")).await.unwrap();
    assert_eq!(Offer::load(&fixture.at("state/db3"), OPERATION).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_is_named_file_by_file() {
    let fixture = offered().await;
    relink(&fixture).await;
    let data = fixture.at("n4 a/18");
    let heap = data.join("base/5/16384");
    let honest = std::fs::read(&heap).unwrap();
    // Pages are judged with every relation in the sample; the first relations are in any sample.
    for percent in [0, 100] {
        let mut flipped = honest.clone();
        flipped[PAGE + 8050] ^= 1;
        std::fs::write(&heap, &flipped).unwrap();
        let told = verify(&fixture, percent).await;
        assert!(!told.equal);
        assert_eq!(told.differences, ["data: base/5/16384: pages differ from the leader's (hints masked)"]);
    }
    let mut stale = honest.clone();
    stale[2 * PAGE + 4] -= 1;
    std::fs::write(&heap, &stale).unwrap();
    assert!(
        verify(&fixture, 0).await.differences[0].contains("base/5/16384: pages differ"),
        "an older position"
    );
    std::fs::write(&heap, &honest).unwrap();
    assert!(verify(&fixture, 100).await.equal);

    std::fs::write(&heap, &honest[..2 * PAGE]).unwrap();
    let vm = data.join("base/5/16384_vm");
    let mut bits = std::fs::read(&vm).unwrap();
    bits[4000] ^= 1;
    std::fs::write(&vm, bits).unwrap();
    std::fs::remove_file(data.join("base/5/16390")).unwrap();
    std::fs::copy(fixture.at("n4 a/15/base/5/16500"), data.join("tmp")).unwrap();
    std::fs::rename(data.join("tmp"), data.join("base/5/16500")).unwrap();
    write(&data.join("base/5/1259"), "nEw catalog");
    write(&data.join("base/5/77777"), "extra");
    write(&data.join("PG_VERSION"), "19\n");
    std::fs::set_permissions(data.join("pg_wal"), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::remove_file(data.join("pg_tblspc/16400")).unwrap();
    std::os::unix::fs::symlink("/elsewhere", data.join("pg_tblspc/16400")).unwrap();
    let told = verify(&fixture, 100).await;
    assert!(!told.equal);
    for part in [
        "base/5/16384: 24576 bytes on the leader, 16384 here",
        "base/5/16384_vm: pages differ",
        "base/5/16390: missing here",
        "base/5/16500: shares its inode with base/5/16500 on the leader, but not here",
        "base/5/1259: content differs",
        "base/5/77777: not on the leader",
        "PG_VERSION: content differs",
        "pg_wal: mode",
        "pg_tblspc/16400 does not lead to",
    ] {
        assert!(told.differences.iter().any(|d| d.contains(part)), "{part}: {:#?}", told.differences);
    }
    assert_eq!(told.differences.len(), 9, "{:#?}", told.differences);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_broke_off_is_taken_up_again() {
    let fixture = offered().await;
    fixture.break_off.store(2, Ordering::SeqCst);
    relink(&fixture).await;
    assert_eq!(fixture.break_off.load(Ordering::SeqCst), 0);
    assert!(verify(&fixture, 100).await.equal);
}

/// Waits for something that nothing notifies of.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_goes_on_without_its_agent_is_joined_or_undone() {
    let fixture = offered().await;
    let calls = || fixture.calls.load(Ordering::SeqCst);
    let begin = async |expected: u32| {
        let (step, cx) = (RelinkStep(fixture.relink()), fixture.context("db4", "relink"));
        let run = tokio::spawn(async move { step.act(&cx).await });
        eventually("rsync has called", || calls() == expected).await;
        // As a killed agent leaves it: the job goes on.
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
    };
    let closed = fixture.gate.write().await;
    begin(1).await;
    let step = RelinkStep(fixture.relink());
    step.undo(&fixture.context("db4", "relink")).await.unwrap();
    assert!(!fixture.at("n4 a/18").exists() && !fixture.at("ts4/PG_18_202506291").exists());

    begin(2).await;
    let cx = fixture.context("db4", "relink");
    assert_eq!(step.probe(&cx).await.unwrap(), Probe::Ready);
    drop(closed);
    step.act(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_eq!(calls(), 3, "undone, joined, and the tablespace");
    assert!(verify(&fixture, 100).await.equal);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_attempt_left_is_not_taken_for_whole() {
    let fixture = offered().await;
    let data = fixture.at("n4 a/18");
    // As after a SIGKILL: our mark, a file of the right size and the wrong content, no job.
    write(
        &data.join("pgleap.created"),
        format!(
            r#"{{"operation":"{OPERATION}","step":"relink","stage":"relinking","made":[{:?}]}}"#,
            fixture.at("ts4/PG_18_202506291")
        ),
    );
    write(&data.join("base/5/1259"), "NEW CATALOG");
    write(&fixture.at("ts4/PG_18_202506291/5/16500"), "half");
    relink(&fixture).await;
    assert_eq!(text(&data.join("base/5/1259")), "new catalog");
    assert!(verify(&fixture, 100).await.equal);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_states_are_refused_before_anything_is_changed() {
    let fixture = offered().await;
    let step = RelinkStep(fixture.relink());
    let cx = fixture.context("db4", "relink");
    let refusal = async |step: &RelinkStep| match step.probe(&cx).await {
        Ok(Probe::Ready) => step.act(&cx).await.unwrap_err().message,
        other => other.unwrap_err().message,
    };
    write(&fixture.at("n4 a/18/somebody's"), "x");
    assert!(refusal(&step).await.contains("not empty and was not made by this operation"));
    std::fs::remove_dir_all(fixture.at("n4 a/18")).unwrap();
    write(&fixture.at("n4 a/15/state"), "in production");
    assert!(refusal(&step).await.contains("not \"shut down in recovery\""));
    write(&fixture.at("n4 a/15/state"), "shut down in recovery");
    let mut moved = fixture.relink();
    moved.node.as_mut().unwrap().data_dir = fixture.at("n4 a/new").to_string_lossy().into_owned();
    assert!(refusal(&RelinkStep(moved)).await.contains("same position to each other"));
    let mut unmapped = fixture.relink();
    unmapped.node.as_mut().unwrap().tablespaces.clear();
    assert!(refusal(&RelinkStep(unmapped)).await.contains("lies outside"));
    write(&fixture.at("n3 a/18/global/pg_control"), "started once");
    assert!(refusal(&step).await.contains("a server ran there"));
    assert!(!fixture.at("n4 a/18").exists());
    let mut other = fixture.relink();
    other.same_checkpoint = false;
    assert_eq!(RelinkStep(other).probe(&cx).await.unwrap(), Probe::Done(Output::default()));
}

/// Runs our remote shell by hand, as rsync would; its exit code and what it said.
fn by_hand(fixture: &Fixture, host: &str, operation: &str, command: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pgleap-agent"))
        .args(["rsh", "--tls-dir"])
        .arg(fixture.at("tls").join(host))
        .args(["--agent", &fixture.address, "--host", "db3", "--operation", operation, "leader"])
        .args(command)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_readers_only_senders_only_the_offered_directories() {
    let fixture = offered().await;
    write(&fixture.at("n3 a/secret/key"), "secret");
    let seed = format!("{}/./15", fixture.at("n3 a").display());
    let secret = format!("{}/./secret", fixture.at("n3 a").display());
    let sender = ["rsync", "--server", "--sender", "-lHogDtprRe.LsfxCIvu"];
    let ask = |host: &str, operation: &str, rest: &[&str]| {
        by_hand(&fixture, host, operation, &[&sender[..], rest].concat())
    };
    for (answer, part) in [
        (ask("db9", OPERATION, &[".", &seed]), "not among the readers"),
        (ask("db4", "shop-ffffff", &[".", &seed]), "offers no files"),
        (ask("db4", "../../etc/passwd", &[".", &seed]), "no name of an operation"),
        (ask("db4", OPERATION, &[".", &secret]), "is not offered"),
        (ask("db4", OPERATION, &[".", "/./etc"]), "is not offered"),
        (ask("db4", OPERATION, &["--remove-source-files", ".", &seed]), "is not allowed"),
        (by_hand(&fixture, "db4", OPERATION, &["rsync", "--server", "-re.", ".", "/tmp"]), "only"),
        (by_hand(&fixture, "db4", OPERATION, &["sh", "-c", "id"]), "refused"),
    ] {
        assert_eq!(answer.0, Some(255), "{}", answer.1);
        assert!(answer.1.contains(part), "{part}: {}", answer.1);
    }
    let (code, said) = ask("db4", OPERATION, &[".", &seed]);
    assert_ne!(code, Some(255), "admitted; the sender itself ends at the empty input: {said}");
}

/// What a reader of its own making would send: a merge rule has the sender open a file that was never offered.
#[tokio::test(flavor = "multi_thread")]
async fn filter_rules_open_no_file() {
    let fixture = offered().await;
    let outside = fixture.at("n3 a/secret");
    write(&outside, "secret");
    let cx = fixture.context("db4", "raw");
    let seed = format!("{}/./15", fixture.at("n3 a").display());
    let arguments =
        ["rsync", "--server", "--sender", "-rRe.LsfxCIvu", ".", &seed].map(str::to_owned).to_vec();
    let told = async |rule: &str| {
        let mut client = peer_client::connect(&fixture.address, "db3", &cx.tls).await.unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let open = RsyncOpen { operation: OPERATION.into(), arguments: arguments.clone() };
        let mut list = (rule.len() as u32).to_le_bytes().to_vec();
        list.extend(rule.as_bytes());
        list.extend([0; 4]);
        let header = (7 << 24 | list.len() as u32).to_le_bytes();
        let rules = rsync_frame::Kind::Data([&31_u32.to_le_bytes()[..], &header, &list].concat());
        for kind in [rsync_frame::Kind::Open(open), rules, rsync_frame::Kind::Eof(true)] {
            sender.send(RsyncFrame { kind: Some(kind) }).await.unwrap();
        }
        let mut stream =
            client.rsync(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let (mut bytes, mut said) = (Vec::new(), String::new());
        loop {
            match stream.message().await.map(|frame| frame.and_then(|frame| frame.kind)) {
                Ok(Some(rsync_frame::Kind::Data(more))) => bytes.extend(more),
                Ok(Some(rsync_frame::Kind::Stderr(text))) => said.push_str(&text),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(status) => {
                    said.push_str(status.message());
                    break;
                }
            }
        }
        (String::from_utf8_lossy(&bytes).into_owned(), said)
    };
    for rule in [format!(". {}", outside.display()), ". /nowhere".to_owned(), ": .rsync-filter".to_owned()] {
        let (_, said) = told(&rule).await;
        assert!(said.contains("only anchored excludes are served"), "{rule}: {said}");
        assert!(!said.contains("open"), "{rule}: {said}");
    }
    // The same by hand with a rule of our own client's: the sender lists the seed's files.
    let (listed, said) = told("- /15/pg_wal").await;
    assert!(listed.contains("pg_control"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_ends_with_its_client() {
    let fixture = offered().await;
    let cx = fixture.context("db4", "raw");
    let mut client = peer_client::connect(&fixture.address, "db3", &cx.tls).await.unwrap();
    let seed = format!("{}/./15", fixture.at("n3 a").display());
    let arguments =
        ["rsync", "--server", "--sender", "-rRe.LsfxCIvu", ".", &seed].map(str::to_owned).to_vec();
    let open = RsyncOpen { operation: OPERATION.into(), arguments };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(RsyncFrame { kind: Some(rsync_frame::Kind::Open(open)) }).await.unwrap();
    let stream = client.rsync(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap();
    assert_eq!(senders_of(&seed), 1);
    drop((stream, sender, client));
    eventually("the sender ends", || senders_of(&seed) == 0).await;
}

/// Processes whose command line has this argument and `--sender`.
fn senders_of(path: &str) -> usize {
    let lines = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = std::fs::read(entry.unwrap().path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).split('\0').map(str::to_owned).collect::<Vec<_>>())
    });
    lines.filter(|line| line.iter().any(|a| a == "--sender") && line.iter().any(|a| a == path)).count()
}
