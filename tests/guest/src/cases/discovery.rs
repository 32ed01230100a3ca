//! Owns the tests of discovery: the log page as a host sees it, and connecting to all that it names.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::endpoint::{DISCOVERY_NQN, NQN, PORT};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("discover", discover).peer(),
    Case::new("discover_on_the_io_port", discover_on_the_io_port).peer(),
    Case::new("log_page_is_stable", log_page_is_stable).peer(),
    Case::new("connect_all", connect_all).peer(),
    Case::new("persistent_controller", persistent_controller).peer(),
];

fn discover(lab: &mut Lab) -> Result<()> {
    let endpoint = lab.endpoint().clone();
    check_log(
        lab,
        &lab.host()
            .discover(endpoint.address(), endpoint.discovery_port)?,
    )
}

fn discover_on_the_io_port(lab: &mut Lab) -> Result<()> {
    check_log(lab, &lab.host().discover(lab.endpoint().address(), PORT)?)
}

/// The log must name our subsystem once for each of the addresses, and nothing else of that kind.
fn check_log(lab: &Lab, log: &Value) -> Result<()> {
    let records = log["records"].as_array().context("a log without records")?;
    let mut addresses = Vec::new();
    let mut port_ids = Vec::new();
    for record in records {
        let text = |field: &str| record[field].as_str().unwrap_or_default();
        ensure!(
            text("trtype") == "tcp" && text("adrfam") == "ipv4",
            "transport of {record}"
        );
        ensure!(text("sectype") == "none", "secure channel of {record}");
        match text("subtype") {
            "nvme subsystem" => {
                ensure!(text("subnqn") == NQN, "name of {record}");
                ensure!(text("trsvcid") == PORT.to_string(), "port of {record}");
                addresses.push(text("traddr").to_owned());
                port_ids.push(record["portid"].as_u64().context("a port id")?);
            }
            "current discovery subsystem" => {
                ensure!(text("subnqn") == DISCOVERY_NQN, "name of {record}");
            }
            other => anyhow::bail!("a record of type {other}: {record}"),
        }
    }
    addresses.sort();
    port_ids.sort_unstable();
    port_ids.dedup();
    // The kernel's target answers for the port that was asked only.
    let expected: Vec<String> = lab
        .endpoint()
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    let peer = addresses.len() == 1 && addresses[0] == expected[0] && lab.is_peer();
    ensure!(
        peer || addresses == expected,
        "addresses {addresses:?}, expected {expected:?}"
    );
    ensure!(
        port_ids.len() == addresses.len(),
        "listeners share a port id: {port_ids:?}"
    );
    Ok(())
}

fn log_page_is_stable(lab: &mut Lab) -> Result<()> {
    let endpoint = lab.endpoint();
    let ask = || {
        lab.host()
            .discover(endpoint.address(), endpoint.discovery_port)
    };
    let (first, second) = (ask()?, ask()?);
    ensure!(
        first["genctr"].as_u64().is_some(),
        "no generation counter in {first}"
    );
    ensure!(
        first == second,
        "the log changed by itself: {first} became {second}"
    );
    Ok(())
}

fn connect_all(lab: &mut Lab) -> Result<()> {
    let endpoint = lab.endpoint().clone();
    let (address, port) = (endpoint.address(), endpoint.discovery_port);
    lab.guest
        .run(&format!("nvme connect-all -t tcp -a {address} -s {port}"))?;
    let mut connected = Vec::new();
    for controller in lab.host().controllers()? {
        if lab.host().attribute(&controller, "subsysnqn")? == NQN {
            lab.host().wait_live(&controller)?;
            connected.push(lab.host().attribute(&controller, "address")?);
            for namespace in &endpoint.namespaces {
                lab.host().device(&controller, namespace.nsid)?;
            }
        }
    }
    let all = if lab.is_peer() {
        &endpoint.addresses[..1]
    } else {
        &endpoint.addresses[..]
    };
    ensure!(
        connected.len() == all.len(),
        "connected to {connected:?}, expected {all:?}"
    );
    for address in all {
        let wanted = format!("traddr={address},trsvcid={PORT}");
        ensure!(
            connected.iter().any(|is| is.starts_with(&wanted)),
            "no path {wanted}"
        );
    }
    Ok(())
}

fn persistent_controller(lab: &mut Lab) -> Result<()> {
    let (address, port) = (lab.endpoint().address(), lab.endpoint().discovery_port);
    lab.guest.run(&format!(
        "nvme discover -t tcp -a {address} -s {port} --persistent --keep-alive-tmo=5"
    ))?;
    let controllers = lab.host().controllers()?;
    ensure!(controllers.len() == 1, "controllers: {controllers:?}");
    let discovery = &controllers[0];
    let kind = lab.host().attribute(discovery, "cntrltype")?;
    ensure!(kind == "discovery", "controller type {kind}");
    // Longer than the keep alive time: it lives by the keep alives it is sent.
    lab.guest.run("sleep 8")?;
    lab.host().wait_live(discovery)?;
    let log = lab
        .guest
        .run(&format!("nvme discover -d {} -o json", discovery.name))?;
    check_log(lab, &serde_json::from_str(&log)?)
}
