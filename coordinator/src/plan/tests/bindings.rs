//! What is bound into a step is what steps before it have told; and what `finish` makes of it.

use std::collections::BTreeMap;

use pgleap_proto::node::ControlData;
use pgleap_proto::step::output::Kind as OutputKind;
use pgleap_proto::step::{
    Action, Output, RecoveredOutput, RehearsedOutput, SlotsOutput, StoppedOutput, VerifiedOutput,
};
use proptest::prelude::*;

use super::*;
use crate::plan::traffic::Side;

/// What an agent might say to a step that is done.
fn output(step: &PlannedStep) -> Output {
    let control = ControlData { checkpoint_lsn: 77, ..ControlData::default() };
    let kind = match step.action.kind.as_ref().unwrap() {
        Kind::CreateSlots(create) => {
            let mut slots = create.slots.clone();
            for (n, slot) in slots.iter_mut().enumerate() {
                // The highest is not the last.
                slot.lsn = 1000 + [50, 900, 3][n % 3];
            }
            Some(OutputKind::Slots(SlotsOutput { slots, timeline: 1 }))
        }
        Kind::Rehearse(_) => Some(OutputKind::Rehearsed(RehearsedOutput { fingerprint: "rehearsed".into() })),
        Kind::RecoverTo(_) => {
            Some(OutputKind::Recovered(RecoveredOutput { timeline: 2, ..RecoveredOutput::default() }))
        }
        Kind::StopLeader(_) => {
            Some(OutputKind::Stopped(StoppedOutput { control: Some(control), ..StoppedOutput::default() }))
        }
        Kind::StopReplica(_) => Some(OutputKind::Stopped(StoppedOutput {
            control: Some(control),
            same_checkpoint: true,
            ..StoppedOutput::default()
        })),
        Kind::VerifyRelink(_) => {
            Some(OutputKind::Verified(VerifiedOutput { equal: true, ..VerifiedOutput::default() }))
        }
        _ => None,
    };
    Output { kind }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn everything_bound_is_told_by_steps_before(moves: bool, old in 1usize..3, new in 1usize..5, databases in 0usize..5) {
        let case = case_of(moves, old, new, databases);
        let plan = plan(&case);
        let everything: BTreeMap<String, Output> =
            plan.steps.iter().map(|step| (step.id.clone(), output(step))).collect();
        for step in &plan.steps {
            let before = ancestors(&plan, &step.id);
            let told: BTreeMap<String, Output> = everything
                .iter()
                .filter(|(id, _)| before.contains(id.as_str()))
                .map(|(id, output)| (id.clone(), output.clone()))
                .collect();
            let bound = bind(&plan, step, &told).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(&bound, &bind(&plan, step, &everything).unwrap(), "more outputs change nothing");
            let highest = 1000 + if case.server_databases() > 1 { 900 } else { 50 };
            match bound.kind.unwrap() {
                Kind::RecoverTo(a) => prop_assert_eq!(a.target_lsn, highest),
                Kind::Subscribe(a) => {
                    prop_assert_eq!(a.target_lsn, highest);
                    let way_back = step.phase == Phase::Route;
                    prop_assert_eq!(a.subscription.ends_with("_r"), way_back);
                    prop_assert!(a.slots.iter().all(|slot| slot.slot.starts_with("pgleap_0123ab_r_") == way_back));
                    prop_assert!(a.slots.iter().all(|slot| slot.lsn > 0));
                }
                Kind::EnableSubscriptions(a) => prop_assert_eq!(a.target_lsn, highest),
                Kind::CheckUpgrade(a) => prop_assert_eq!(a.rehearsed, "rehearsed"),
                Kind::StopReplica(a) => prop_assert_eq!(a.leader.unwrap().checkpoint_lsn, 77),
                Kind::Relink(a) => prop_assert!(a.same_checkpoint),
                Kind::VerifyRelink(a) => prop_assert!(a.same_checkpoint),
                Kind::CloneNode(a) => prop_assert_eq!(a.verified, step.phase == Phase::Upgrade),
                Kind::StartReplica(a) => {
                    prop_assert_eq!((a.verified, a.moved.is_some()), (!moves, moves))
                }
                Kind::StartStandby(a) => prop_assert_eq!(a.timeline, if step.phase == Phase::Convert { 2 } else { 0 }),
                _ => {}
            }
        }
    }
}

#[test]
fn nothing_is_bound_from_nonsense() {
    let case = case(2, 2, 1);
    let plan = plan(&case);
    let recover = plan.step("convert.recover_to").unwrap();
    let told = |output: Output| BTreeMap::from([("convert.create_slots".to_owned(), output)]);
    let error = bind(&plan, recover, &BTreeMap::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "step convert.recover_to needs what step convert.create_slots found out: it has no output yet; install the same \
         version of pgleap everywhere, cancel, then start again; if it comes back, report it"
    );
    assert!(bind(&plan, recover, &told(Output::default())).is_err());

    let mut slots = output(plan.step("convert.create_slots").unwrap());
    assert!(bind(&plan, recover, &told(slots.clone())).is_ok());
    if let Some(OutputKind::Slots(found)) = &mut slots.kind {
        found.slots[0].lsn = 0;
    }
    let error = bind(&plan, recover, &told(slots.clone())).unwrap_err().to_string();
    assert!(error.contains("no position of slot pgleap_0123ab_16400 in database \"app\""), "{error}");
    if let Some(OutputKind::Slots(found)) = &mut slots.kind {
        found.slots.remove(0);
    }
    assert!(bind(&plan, recover, &told(slots)).is_err());
}

#[test]
fn what_serves_the_side_that_stays_is_not_pointed_back_by_finish() {
    let of = |kind: Kind| Action { kind: Some(kind) };
    let pooler = for_finish(of(Kind::StagePooler(Default::default())), Side::New);
    assert!(
        matches!(pooler.kind, Some(Kind::StagePooler(stage)) if stage.stays() == pgleap_proto::traffic::Side::New)
    );
    let balancer = for_finish(of(Kind::StageBalancer(Default::default())), Side::New);
    assert!(matches!(balancer.kind, Some(Kind::StageBalancer(stage)) if stage.weights_stay));
}
