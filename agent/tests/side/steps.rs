//! The steps of the phase "route": the marker, and the fence of a stopped node and of its clones.

use pgleap_agent::fence;

use crate::client::is_kept_out;
use crate::fence::start;
use crate::pair::{DATABASES, Place, TAG, create_marker, fence_node, hba, server};
use crate::scenario;

#[test]
fn the_marker_is_made_seen_and_taken_back() {
    scenario("steps::the_marker_is_made_seen_and_taken_back", async || {
        let place = Place::new();
        let server = server("one", 15);
        let error = place.step(create_marker(&server.node, true)).await.unwrap_err();
        assert!(error.message.contains("should have come"), "{error}");
        place.step(create_marker(&server.node, false)).await.unwrap();
        place.step(create_marker(&server.node, true)).await.unwrap();
        for database in DATABASES {
            let rows =
                server.sql(database, &format!("SELECT side, mark FROM {TAG}.marker ORDER BY side DESC"));
            assert_eq!(rows.trim(), "old|0\nnew|0");
        }
        place.undo(create_marker(&server.node, false)).await;
        assert_eq!(server.sql("app", &format!("SELECT to_regnamespace('{TAG}') IS NULL")).trim(), "t");
        // Another's is neither used nor dropped.
        server.sql("app", &format!("CREATE SCHEMA {TAG}"));
        assert!(place.step(create_marker(&server.node, false)).await.is_err());
        place.undo(create_marker(&server.node, false)).await;
        assert_eq!(server.sql("app", &format!("SELECT to_regnamespace('{TAG}') IS NOT NULL")).trim(), "t");
    });
}

#[test]
fn a_stopped_node_is_fenced_before_its_start_and_its_clone_is_not() {
    scenario("steps::a_stopped_node_is_fenced_before_its_start_and_its_clone_is_not", async || {
        let place = Place::new();
        let server = server("one", 18);
        let original = std::fs::read(hba(&server)).unwrap();
        server.run("pg_ctl", &["-D", &server.node.data_dir, "-m", "fast", "-w", "-s", "stop"]);
        place.step(fence_node(&server.node, "follower")).await.unwrap();
        start(&server);
        place.step(fence_node(&server.node, "follower")).await.unwrap();
        assert!(is_kept_out(&server.node).await);

        let mut clone = server.node.clone();
        clone.data_dir = place.root.path().join("clone").display().to_string();
        server.run("pg_basebackup", &["-D", &clone.data_dir, "-c", "fast"]);
        let notes = fence::open_clone(&clone).await.unwrap();
        assert!(notes[0].contains("came along"), "{notes:?}");
        assert_eq!(std::fs::read(place.root.path().join("clone/pg_hba.conf")).unwrap(), original);
        assert!(fence::is_fenced(&server.node).await.unwrap(), "the leader stays fenced");

        place.undo(fence_node(&server.node, "follower")).await;
        assert!(!is_kept_out(&server.node).await);
        assert_eq!(std::fs::read(hba(&server)).unwrap(), original);
    });
}
