//! `peanut ring [GROUP KEY]`.

use std::process::ExitCode;

use peanut_client::{Client, NodeStatus};
use serde::Serialize;

use crate::output::{print_json, print_line, print_table};

#[derive(Serialize)]
struct Output<'a> {
    fleet: &'a str,
    version: u64,
    members: Vec<MemberOutput<'a>>,
    /// What an operator should know.
    notices: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<KeyOutput<'a>>,
}

#[derive(Serialize)]
struct MemberOutput<'a> {
    id: &'a str,
    addr: &'a str,
    zone: &'a str,
    weight: u32,
    share: f64,
    health: &'static str,
}

#[derive(Serialize)]
struct KeyOutput<'a> {
    group: &'a str,
    key: &'a str,
    owner: &'a str,
    successor: Option<&'a str>,
}

pub(crate) async fn run(client: &Client, fleet: &str, key: Option<(&str, &str)>, json: bool) -> ExitCode {
    client.probe().await;
    let (ring, nodes) = (client.ring(), client.nodes());
    let name = |at: usize| ring.members()[at].id.as_str();
    let key = key.and_then(|(group, key)| {
        let place = ring.place(group, key.as_bytes())?;
        Some(KeyOutput { group, key, owner: name(place.owner), successor: place.successor.map(name) })
    });
    let notices = client.notices().iter().map(ToString::to_string).collect();
    let members = nodes.iter().map(member).collect();
    let output = Output { fleet, version: ring.version().0, members, notices, key };
    if json {
        print_json(&output);
    } else if let Some(key) = output.key {
        let health =
            |id| output.members.iter().find(|member| member.id == id).map_or("", |member| member.health);
        print_line(&format!("owner      {}  {}", key.owner, health(key.owner)));
        match key.successor {
            Some(successor) => print_line(&format!("successor  {successor}  {}", health(successor))),
            None => print_line("successor  none"),
        }
    } else {
        print_ring(&output);
    }
    ExitCode::SUCCESS
}

fn member(node: &NodeStatus) -> MemberOutput<'_> {
    // A node may answer while its lease is lost, or hold a lease and not answer this client.
    let health = match (node.up, node.alive) {
        (true, true) => "up",
        (true, false) => "up, no lease",
        (false, true) => "unreachable",
        (false, false) => "down",
    };
    let NodeStatus { id, addr, zone, weight, share, .. } = node;
    MemberOutput { id, addr, zone, weight: *weight, share: *share, health }
}

fn print_ring(output: &Output<'_>) {
    let count = output.members.len();
    print_line(&format!("fleet {}, ring version {}, {count} nodes", output.fleet, output.version));
    let heading = ["NODE", "ADDRESS", "ZONE", "WEIGHT", "SHARE", "HEALTH"].map(str::to_owned);
    let rows = output.members.iter().map(|member| {
        let share = format!("{:5.1} %", member.share * 100.0);
        [member.id, member.addr, member.zone, &member.weight.to_string(), &share, member.health]
            .map(str::to_owned)
    });
    print_table(&[heading].into_iter().chain(rows).collect::<Vec<_>>());
    output.notices.iter().for_each(|notice| print_line(notice));
}
