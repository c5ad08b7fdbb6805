//! What happens in operations is told in the log, too, by the member that leads: steps, switchovers and what people asked for, so that
//! `journalctl PGLEAP_OPERATION=…` shows on the coordinators what `pgleap events` shows. It decides nothing.

use pgleap_proto::service;

use crate::state::events::Event;
use crate::state::{Operation, State};

/// Kinds of events that somebody should look at.
const WORRYING: [&str; 8] = [
    "failed",
    "blocked",
    "stopped",
    "disturbed",
    "try-failed",
    "given-up",
    "decision-taken-back",
    "abandoned",
];

/// Tells what came after this entry of the log, in its order.
pub(super) fn tell(state: &State, after: u64) {
    let mut news: Vec<(&Operation, &Event)> = Vec::new();
    for operation in state.operations.values() {
        let new = operation.events.iter().rev().take_while(|event| event.index > after);
        news.extend(new.map(|event| (operation.as_ref(), event)));
    }
    // Those of one entry stay in their order: the newest came first.
    news.reverse();
    news.sort_by_key(|(_, event)| event.index);
    news.into_iter().for_each(|(operation, event)| line(operation, event));
}

fn line(operation: &Operation, event: &Event) {
    let Event { step, kind, message, by, .. } = event;
    let host = operation.plan.step(step).map(|step| step.host.as_str());
    let step = Some(step.as_str()).filter(|step| !step.is_empty());
    let colon = if message.is_empty() { "" } else { ": " };
    let (operation, cluster) = (operation.id.as_str(), service::cluster_of(&operation.id));
    if WORRYING.contains(&kind.as_str()) {
        tracing::warn!(operation, cluster, step, host, by, "{kind}{colon}{message}");
    } else {
        tracing::info!(operation, cluster, step, host, by, "{kind}{colon}{message}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use tracing_subscriber::Layer as _;
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::super::tests::Fixture;
    use crate::testing::poll;

    /// What one thread logs.
    #[derive(Clone)]
    struct Lines {
        of: thread::ThreadId,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
        }
    }

    impl Write for Lines {
        fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
            if thread::current().id() == self.of {
                self.written.lock().unwrap().extend_from_slice(part);
            }
            Ok(part.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn each_thing_is_told_once_and_by_who_leads_then() {
        let lines = Lines { of: thread::current().id(), written: Arc::default() };
        let written = lines.clone();
        let told = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || written.clone());
        let told = told
            .with_filter(Targets::new().with_target("pgleap_coordinator::driver::told", LevelFilter::INFO));
        // For all threads: whether anybody listens to a line at all is remembered by the first that comes to it, another test perhaps.
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(told)).unwrap();
        let fixture = Fixture::new().await;
        let coordinator = fixture.coordinator();
        coordinator.begin(vec![fixture.on(1, "s.a", &[]), fixture.on(2, "s.b", &["s.a"])]).await;
        coordinator.at_gate().await;
        poll("it to be told", || lines.text().contains("waiting: every step is done")).await;
        coordinator.die().await;
        let next = fixture.coordinator();
        next.at_gate().await;

        let text = lines.text();
        let told = |what: &str| text.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
        for what in ["operation-started: ", "waiting: every step is done"] {
            assert_eq!(told(what).len(), 1, "{what}: {text}");
        }
        let done = told(": done ");
        assert!(done.len() == 2 && done[0].contains("step=\"s.a\" host=\"h1\""), "{text}");
    }
}
