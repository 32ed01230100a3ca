//! What the appliance says once it serves: what there is, and how a host gets at it.

use std::net::SocketAddr;

use corebay_conf::{
    Appliance, Size,
    appliance::{Access, Store, Subsystem},
};

use super::media::Exports;

/// Prints what is served, with the commands for a Linux host, and that it is ready.
pub fn ready(appliance: &Appliance, exports: &Exports, addresses: &[SocketAddr]) {
    let mut text = format!("corebay {} serves\n", env!("CARGO_PKG_VERSION"));
    for subsystem in appliance.subsystems() {
        text += &describe(appliance, exports, subsystem, addresses);
    }
    text += "\non a Linux host (as root):\n  modprobe nvme-tcp\n";
    let listeners = appliance.listeners().iter().zip(addresses);
    let discovery: Vec<_> = listeners
        .filter(|(l, _)| l.discovery)
        .map(|(_, a)| *a)
        .collect();
    if let Some(address) = discovery.last() {
        text += &format!("  nvme discover {}\n", host_options(*address));
        text += &format!("  nvme connect-all {}\n", host_options(*address));
    }
    for subsystem in appliance.subsystems() {
        for &listener in &subsystem.listeners {
            let address = addresses[listener.index()];
            text += &format!(
                "  nvme connect {} -n {}\n",
                host_options(address),
                subsystem.nqn
            );
        }
    }
    print!("{text}\nready: Ctrl-C or SIGTERM ends it cleanly\n");
    // The reader may wait for these lines, and a pipe is not flushed by itself.
    let _ = std::io::Write::flush(&mut std::io::stdout());
}

fn describe(
    appliance: &Appliance,
    exports: &Exports,
    subsystem: &Subsystem,
    addresses: &[SocketAddr],
) -> String {
    let at: Vec<_> = subsystem
        .listeners
        .iter()
        .map(|l| addresses[l.index()].to_string())
        .collect();
    let who = match &subsystem.access {
        Access::AnyHost => "any host".to_owned(),
        Access::Hosts(hosts) if hosts.is_empty() => "no host: name some with hosts = [...]".into(),
        Access::Hosts(hosts) => format!("{} hosts", hosts.len()),
    };
    let mut text = format!(
        "\nsubsystem {}\n  serial {}, at {}, for {who}\n",
        subsystem.nqn,
        subsystem.serial.as_str(),
        at.join(", ")
    );
    let kept = exports.registry.find(&subsystem.nqn);
    for namespace in &subsystem.namespaces {
        let name = appliance.store_name(namespace.store);
        let kind = match namespace.store {
            Store::Disk(_) => "disk",
            Store::Array(_) => "array",
        };
        let Some(spec) = kept
            .as_ref()
            .and_then(|kept| kept.namespace(namespace.nsid))
        else {
            continue;
        };
        text += &format!(
            "  namespace {}: {} in blocks of {} bytes, {kind} {name}, uuid {}{}\n",
            namespace.nsid,
            Size::from_bytes(spec.info.bytes()),
            spec.info.block_size.bytes(),
            uuid::Uuid::from_bytes(spec.identity.uuid),
            if namespace.read_only {
                ", read only"
            } else {
                ""
            },
        );
    }
    text
}

/// The options of nvme-cli that name an address.
fn host_options(address: SocketAddr) -> String {
    let ip = if address.ip().is_unspecified() {
        "ADDRESS".to_owned()
    } else {
        address.ip().to_string()
    };
    format!("-t tcp -a {ip} -s {}", address.port())
}
