//! Passwords in pooler files and hooks' URLs stay where they are: not in answers, logs or records, even when something fails. And
//! what the agent makes is its own, although it runs with the widest umask.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use pgleap_proto::traffic::{Hook, Pooler, Side, pooler};

use crate::in_world;
use crate::private::{assert_private, holders};
use crate::world::{World, free_port};

const CANARY: &str = "canary-7f3a9c";

#[test]
fn no_secret_leaves_the_poolers_files() {
    in_world("secrets::no_secret_leaves_the_poolers_files", async |world| {
        let (old, state) = (World::reach(&world.old), world.servers.path("state"));
        let entries = format!(
            "app = {old} user=postgres password={CANARY}\nshop={old} dbname=shop password='{CANARY}'"
        );
        let bouncer = world.bouncer("b1", free_port(), &entries, "").await;
        let dir = bouncer.config.parent().unwrap().to_owned();
        std::fs::write(dir.join("users"), format!("\"adm\" \"\"\n\"postgres\" \"{CANARY}\"\n")).unwrap();
        std::fs::set_permissions(&bouncer.config, std::fs::Permissions::from_mode(0o640)).unwrap();
        bouncer.ask("RELOAD").await;
        let before = std::fs::metadata(&bouncer.config).unwrap();

        let pooler = bouncer.pooler("b1");
        world.arm(&pooler, Side::New).await.unwrap();
        assert!(world.pause(&pooler, 10_000, 60_000).await.unwrap().paused);
        world.resume(&pooler, Side::New).await.unwrap();
        assert!(bouncer.serves(&["app", "shop"], &world.new).await);
        let after = std::fs::metadata(&bouncer.config).unwrap();
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert!(bouncer.text().contains(CANARY));
        for copy in bouncer.left_over() {
            assert_eq!(std::fs::metadata(dir.join(&copy)).unwrap().mode(), before.mode(), "{copy}");
        }

        // What cannot be read is refused, without its words.
        let text = bouncer.text();
        for broken in [format!("app = host='x password={CANARY}"), format!("app = password {CANARY} host=x")]
        {
            std::fs::write(&bouncer.config, format!("[databases]\n{broken}\n{text}")).unwrap();
            let refused = world.arm(&pooler, Side::Old).await.unwrap_err();
            assert!(
                refused.message().contains("line 2") && !format!("{refused:?}").contains(CANARY),
                "{refused}"
            );
        }
        std::fs::write(&bouncer.config, text).unwrap();

        world.kill_agent();
        let agent = std::fs::read_to_string(&world.agent_toml).unwrap();
        let hook = format!("[[hook]]\nname = \"h\"\nurl = \"http://app:{CANARY}@127.0.0.1:1/\"\n");
        std::fs::write(&world.agent_toml, format!("{agent}\n{hook}")).unwrap();
        world.start_agent().await;
        let definition = Hook { name: "h".into(), drain_ms: 100 };
        let hook = Pooler { name: "h".into(), kind: Some(pooler::Kind::Hook(definition)) };
        let refused = world.arm(&hook, Side::Old).await.unwrap_err();
        assert!(refused.message().contains("http://app:***@127.0.0.1:1/"), "{refused}");
        assert!(!format!("{refused:?}").contains(CANARY), "{refused:?}");

        assert_private(&state);
        assert_eq!(holders(&state, CANARY), Vec::<std::path::PathBuf>::new());
        let log = std::fs::read_to_string(world.servers.path("agent.log")).unwrap();
        assert!(log.contains("serving") && !log.contains(CANARY), "{log}");
    });
}
