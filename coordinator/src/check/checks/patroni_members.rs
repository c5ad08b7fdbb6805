//! Every member that Patroni could let lead is in the fleet file.

use super::{Check, Problem, Verdict, View, without_patroni};

pub(super) const CHECK: Check = Check {
    name: "patroni-members",
    why: "A member without an agent can neither be fenced when Patroni lets it lead, nor be found by the way back.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    if view.cluster.old.patroni.is_none() {
        return without_patroni(view);
    }
    let members = view.old.iter().filter_map(|node| node.facts?.patroni.as_ref());
    let members = &members.max_by_key(|patroni| patroni.members.len())?.members;
    if members.is_empty() {
        return None;
    }
    let nodes = &view.cluster.old.nodes;
    let is_known = |address: &str, port: u32| {
        nodes.iter().any(|node| node.address == address && u32::from(node.port) == port)
    };
    let names_it = |name: &str| nodes.iter().any(|node| node.name == name);
    let missing =
        members.iter().filter(|member| !names_it(&member.name) && !is_known(&member.address, member.port));
    Some(
        missing
            .map(|member| {
                let subject = format!("member {} at {}:{}", member.name, member.address, member.port);
                let cure = "add it to the old nodes of the fleet file, with an agent on its host";
                if member.nofailover {
                    let message =
                        "it is not in the fleet file; it is tagged nofailover, so that it never leads";
                    return Problem::note(subject, message, cure);
                }
                let cure = format!("{cure}, or tag it nofailover");
                Problem::warning(subject, "it is not in the fleet file, and Patroni could let it lead", cure)
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::PatroniMember;
    use pgleap_proto::fleet::finding::Severity::{Note, Warning};

    #[test]
    fn all_are_known() {
        healthy().expect_none("patroni-members");
        healthy().under_patroni().expect_none("patroni-members");
    }

    #[test]
    fn one_that_is_not() {
        let mut case = healthy().under_patroni();
        let far = PatroniMember {
            name: "far".into(),
            address: "10.9.0.1".into(),
            port: 5432,
            ..Default::default()
        };
        case.patroni(0).members.push(far);
        case.expect("patroni-members", Warning, "member far at 10.9.0.1:5432: it is not in the fleet file");
        case.patroni(0).members.last_mut().unwrap().nofailover = true;
        case.expect("patroni-members", Note, "never leads");
    }
}
