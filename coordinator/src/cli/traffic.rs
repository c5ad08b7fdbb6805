//! The part of the status screen about reads and writes.

use pgleap_proto::fleet::{BalancerStatus, NodeStatus, TrafficStatus};

use super::format;
use super::output::{Out, Tone};
use super::status::label;
use super::switchover::told;

/// Who takes writes and reads, the switchover under way, the latest one.
pub(super) fn render(out: &Out, traffic: &TrafficStatus, lines: &mut Vec<String>) {
    let counted = match traffic.switchovers {
        0 => String::new(),
        1 => "  (1 switchover)".to_owned(),
        count => format!("  ({count} switchovers)"),
    };
    let writer = out.paint(Tone::Strong, &format!("the {} cluster", traffic.writer));
    lines.push(format!("  {} go to {writer}{counted}", label(out, "writes")));
    for balancer in &traffic.balancers {
        lines.push(format!("  {} {}", label(out, "reads"), reads(out, traffic.reads, balancer)));
    }
    lines.extend(traffic.nodes.iter().map(|one| format!("  {} {}", label(out, "node"), node(out, one))));
    if let Some(now) = &traffic.switchover {
        let text = format!("to {} by {}: try {} of {}, {}", now.to, now.by, now.tries, now.most, now.stage);
        lines.push(format!("  {} {}", label(out, "switch"), out.paint(Tone::Warn, &text)));
        lines.extend(now.waiting.iter().map(|who| format!("           {}", out.paint(Tone::Warn, who))));
    }
    if let Some(last) = &traffic.last {
        let at = last.at.split('.').next().unwrap_or_default();
        lines.push(format!(
            "  {} {}",
            label(out, "latest"),
            out.paint(Tone::Dim, &format!("{at} by {}", last.by))
        ));
        lines.push(format!("           {}", told(out, last)));
        let parts: Vec<String> = last
            .timings
            .iter()
            .filter(|part| !part.name.contains('.'))
            .map(|part| format!("{} {:.1} ms", part.name, part.us as f64 / 1000.0))
            .collect();
        if !parts.is_empty() {
            lines.push(format!("           {}", out.paint(Tone::Dim, &parts.join(", "))));
        }
    }
}

fn reads(out: &Out, wanted: u32, balancer: &BalancerStatus) -> String {
    let servers: Vec<String> = balancer
        .servers
        .iter()
        .map(|server| {
            let up = if server.up { "" } else { " down" };
            format!("{} {}{up}", server.server, server.weight)
        })
        .collect();
    let effective = match balancer.effective {
        ..0 => out.paint(Tone::Warn, "unknown"),
        percent => format!("{percent} %"),
    };
    let mut text = format!("{}: {effective} on the new side, {wanted} % wanted", balancer.name);
    if !servers.is_empty() {
        text.push_str(&out.paint(Tone::Dim, &format!("  ({})", servers.join(", "))));
    }
    if !balancer.reason.is_empty() {
        text.push_str(&format!("; {}", out.paint(Tone::Warn, &balancer.reason)));
    }
    text
}

fn node(out: &Out, node: &NodeStatus) -> String {
    let mut text = format!("{} ({}) {}", node.name, node.side, node.role);
    if node.fenced {
        text.push_str(", closed to clients");
    }
    match u64::try_from(node.lag_bytes) {
        Ok(lag) => {
            text.push_str(&format!(", {} behind", format::bytes(lag)));
            if node.lag_ms >= 0 {
                text.push_str(&format!(" ({})", format::seconds(node.lag_ms as f64 / 1000.0)));
            }
        }
        Err(_) if node.reason.is_empty() => {}
        Err(_) => text.push_str(&format!("; {}", out.paint(Tone::Warn, &node.reason))),
    }
    text
}
