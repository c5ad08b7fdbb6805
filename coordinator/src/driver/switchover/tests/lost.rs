//! Hosts that never come back amid a switchover: what it says, what the operator can do, and what becomes of it.

use super::*;

async fn give_up(coordinator: &Coordinator, host: &str) {
    coordinator.tell(Command::Abandon { operation: OP.into(), host: host.into() }).await;
}

fn waits_for(coordinator: &Coordinator, what: &str) -> bool {
    let waiting = coordinator.live.traffic_now(OP).waiting;
    waiting.values().any(|waiting| waiting.why.contains(what))
}

/// Decided, and the new leader is not there.
async fn decided(fixture: &Fixture, away: usize) -> Coordinator {
    fixture.second.answer("lead", vec![Answer::Away; away]);
    let coordinator = ready(fixture).await;
    switch(&coordinator, Side::New).await;
    poll("the status names the way out", || {
        waits_for(&coordinator, "the new leader (host h2) is to take the writes since")
            && waits_for(&coordinator, &format!("if host h2 never comes back: pgleap abandon {OP} h2"))
    })
    .await;
    assert_eq!(coordinator.operation().traffic.writer, Side::New);
    coordinator
}

#[tokio::test]
async fn a_target_that_is_lost_before_it_led_is_given_up_for_the_source() {
    let fixture = Fixture::new().await;
    fixture.second.answer("abort", vec![Answer::Away; 1000]);
    fixture.second.answer("resume", vec![Answer::Away; 1000]);
    let coordinator = decided(&fixture, 1000).await;
    let before = calls(&fixture).len();
    give_up(&coordinator, "h2").await;
    let last = ended(&coordinator).await;
    assert!(!last.decided && last.reason.contains("host h2, on which the new cluster"), "{last:#?}");
    assert!(last.evidence[0].contains("does not answer"), "{last:#?}");
    let traffic = coordinator.operation().traffic.clone();
    assert_eq!((traffic.writer, traffic.reads), (Side::Old, 0));
    let calls = calls(&fixture).split_off(before);
    let opened = named(&calls, "abort").into_iter().find(|moved| moved.what == "old for old").unwrap();
    let client = named(&calls, "resume").into_iter().find(|moved| moved.what == "p1 to old").unwrap();
    assert!(opened.at < client.at, "{calls:#?}");
    // Looked at under a newer ticket than any that told it to lead.
    let asked = named(&calls, "abort").into_iter().find(|moved| moved.what.ends_with("unopened")).unwrap();
    let led = fixture.second.moved().into_iter().rfind(|moved| moved.call == "lead").unwrap();
    assert!(led.ticket < asked.ticket && led.at < asked.at, "{led:?} {asked:?}");
    coordinator.tell(Command::Cancel { operation: OP.into() }).await;
    coordinator.until("cancelled without it", |op| op.status == Status::Cancelled).await;
}

#[tokio::test]
async fn one_whose_agent_says_that_it_was_never_opened_is_given_up_too() {
    let fixture = Fixture::new().await;
    let coordinator = decided(&fixture, 1000).await;
    give_up(&coordinator, "h2").await;
    let last = ended(&coordinator).await;
    assert!(!last.decided && last.evidence[0].contains("never opened to clients"), "{last:#?}");
    assert_eq!(coordinator.operation().traffic.writer, Side::Old);
}

#[tokio::test]
async fn one_that_was_opened_or_is_seen_open_by_others_is_not_given_up() {
    let fixture = Fixture::new().await;
    let opened = std::iter::once(Answer::Fail("node n was opened to clients"));
    fixture.second.answer("abort", opened.chain(vec![Answer::Away; 1000]));
    fixture.first.sees_writer(Side::New.message());
    let coordinator = decided(&fixture, 7).await;
    give_up(&coordinator, "h2").await;
    poll("it says why", || waits_for(&coordinator, "was opened to clients")).await;
    poll("it says who sees it", || waits_for(&coordinator, "host h1 reaches it and finds it open")).await;
    assert_eq!(coordinator.operation().traffic.writer, Side::New);
    let last = ended(&coordinator).await;
    assert!(last.decided, "{last:#?}");
    assert_eq!(coordinator.operation().traffic.writer, Side::New);
    assert!(!calls(&fixture).iter().any(|moved| moved.what == "old for old"), "the source was opened");
}

#[tokio::test]
async fn one_that_led_keeps_its_decision_and_nobody_waits_for_it() {
    let fixture = Fixture::new().await;
    fixture.second.answer("resume", vec![Answer::Away; 1000]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    let led = |op: &Operation| op.traffic.switchover.as_ref().is_some_and(|switchover| switchover.led);
    coordinator.until("that it led is known", led).await;
    coordinator.die().await;
    fixture.second.answer("lead", vec![Answer::Away; 1000]);
    let coordinator = fixture.coordinator();
    coordinator.until("at work", |op| stage(op) == Some(Stage::Decided)).await;
    poll("it is waited for", || waits_for(&coordinator, "is to take the writes")).await;
    give_up(&coordinator, "h2").await;
    let last = ended(&coordinator).await;
    assert!(last.decided && coordinator.operation().traffic.writer == Side::New, "{last:#?}");
    assert!(named(&calls(&fixture), "abort").is_empty());
}

#[tokio::test]
async fn a_pooler_whose_host_is_lost_holds_up_neither_end() {
    for decided in [true, false] {
        let fixture = Fixture::new().await;
        if !decided {
            fixture.first.answer("seal", [Answer::Fail("no")]);
        }
        fixture.second.answer("resume", vec![Answer::Away; 1000]);
        let coordinator = ready(&fixture).await;
        switch(&coordinator, Side::New).await;
        poll("the status names the way out", || {
            waits_for(&coordinator, "pooler p2 (host h2) is to go on with")
                && waits_for(&coordinator, &format!("pgleap abandon {OP} h2"))
        })
        .await;
        give_up(&coordinator, "h2").await;
        assert_eq!(ended(&coordinator).await.decided, decided);
    }
}

#[tokio::test]
async fn nobody_is_paused_while_an_old_transaction_is_in_the_way() {
    let fixture = Fixture::new().await;
    // As many looks as one try has, and some; one that fails does not mean that it is gone.
    let mut looks = vec![Answer::Blocked(vec![77]); 11];
    looks[2] = Answer::Fail("the console does not answer");
    fixture.second.answer("in_use", looks);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    poll("the status names it", || waits_for(&coordinator, "pid 77 (app as u")).await;
    let failed = |op: &Operation| op.traffic.switchover.as_ref().is_some_and(|now| !now.reason.is_empty());
    coordinator.until("the first try is taken back", failed).await;
    let told = coordinator.operation().traffic.switchover.clone().unwrap();
    assert!(told.reason.contains("no client waited") && told.evidence[0].starts_with("pid 77"), "{told:#?}");
    assert!(named(&calls(&fixture), "pause").is_empty());
    let last = ended(&coordinator).await;
    assert!(last.decided && last.tries > 1, "{last:#?}");
    let calls = calls(&fixture);
    assert_eq!(named(&calls, "blockers").len(), 10);
    before(&calls, "blockers", "pause");
}

#[tokio::test]
async fn what_agents_note_while_they_get_ready_is_told() {
    let fixture = Fixture::new().await;
    fixture.first.answer("arm_pooler", [Answer::Notes("\"x\" is left alone")]);
    fixture.first.answer("arm_source", [Answer::Notes("a worker runs inside")]);
    fixture.second.answer("arm_target", [Answer::Notes("a subscription goes on")]);
    let coordinator = ready(&fixture).await;
    switch(&coordinator, Side::New).await;
    assert!(ended(&coordinator).await.decided);
    let operation = coordinator.operation();
    let told = operation.events.iter().filter(|event| event.kind == "note");
    let told: Vec<&str> = told.map(|event| event.message.as_str()).collect();
    assert_eq!(
        told,
        [
            "pooler p1 (host h1): \"x\" is left alone",
            "the old leader (host h1): a worker runs inside",
            "the new leader (host h2): a subscription goes on"
        ]
    );
}
