//! What the appliance says once it serves: what there is, and how a host gets at it.

use std::{net::SocketAddr, path::Path};

use corebay_conf::{Appliance, Size};
use corebay_target::subsystem::{Access, Subsystem};

use super::{environment::Medium, media::Exports};
use crate::cli::is_looked_for;

/// Prints what is served, with the commands for a Linux host, and that it is ready. `control` is its socket.
pub fn ready(appliance: &Appliance, exports: &Exports, addresses: &[SocketAddr], control: &Path) {
    let mut text = format!("corebay {} serves\n", env!("CARGO_PKG_VERSION"));
    let subsystems: Vec<_> = exports
        .registry
        .subsystems()
        .into_iter()
        .map(|subsystem| (addresses_of(appliance, &subsystem, addresses), subsystem))
        .collect();
    for (at, subsystem) in &subsystems {
        text += &describe(appliance, subsystem, at);
    }
    text += &pools(exports, control);
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
    for (at, subsystem) in &subsystems {
        for &address in at {
            text += &format!(
                "  nvme connect {} -n {}\n",
                host_options(address),
                subsystem.names.nqn
            );
        }
    }
    print!("{text}\nready: Ctrl-C or SIGTERM ends it cleanly\n");
    // The reader may wait for these lines, and a pipe is not flushed by itself.
    let _ = std::io::Write::flush(&mut std::io::stdout());
}

/// Where a subsystem is served.
fn addresses_of(
    appliance: &Appliance,
    subsystem: &Subsystem<Medium>,
    addresses: &[SocketAddr],
) -> Vec<SocketAddr> {
    let configured = appliance.subsystems().iter();
    let mut configured = configured.filter(|known| known.nqn == subsystem.names.nqn);
    match configured.next() {
        Some(known) => {
            let listeners = known.listeners.iter();
            listeners.map(|l| addresses[l.index()]).collect()
        }
        // One that a pool brings is served wherever subsystems are.
        None => {
            let listeners = appliance.listeners().iter().zip(addresses);
            let serving = listeners.filter(|(listener, _)| listener.subsystems);
            serving.map(|(_, address)| *address).collect()
        }
    }
}

fn describe(appliance: &Appliance, subsystem: &Subsystem<Medium>, at: &[SocketAddr]) -> String {
    let at: Vec<_> = at.iter().map(ToString::to_string).collect();
    let who = match subsystem.access() {
        Access::Any => "any host".to_owned(),
        Access::Hosts(hosts) if hosts.is_empty() => "no host: name some with hosts = [...]".into(),
        Access::Hosts(hosts) => format!("{} hosts", hosts.len()),
    };
    let mut text = format!(
        "\nsubsystem {}\n  serial {}, at {}, for {who}\n",
        subsystem.names.nqn,
        subsystem.names.serial,
        at.join(", ")
    );
    for spec in subsystem.namespaces() {
        let (kind, name) = match &spec.medium {
            Medium::Volume(volume) => ("volume", volume.name.clone()),
            Medium::Array(array) => ("array", array.name.clone()),
            Medium::Plain(_) => {
                let configured = appliance.subsystems().iter();
                let mut configured = configured.filter(|known| known.nqn == subsystem.names.nqn);
                let namespaces = configured.next().map(|known| &known.namespaces);
                let mut namespaces = namespaces.into_iter().flatten();
                let namespace = namespaces.find(|known| known.nsid == spec.nsid);
                let name = namespace.map_or("", |known| appliance.store_name(known.store));
                ("disk", name.to_owned())
            }
        };
        text += &format!(
            "  namespace {}: {} in blocks of {} bytes, {kind} {name}, uuid {}{}\n",
            spec.nsid,
            Size::from_bytes(spec.bytes()),
            spec.info.block_size.bytes(),
            uuid::Uuid::from_bytes(spec.identity.uuid),
            if spec.is_read_only() {
                ", read only"
            } else {
                ""
            },
        );
    }
    text
}

/// The pools, and how a volume is made in them.
fn pools(exports: &Exports, control: &Path) -> String {
    let pools = exports.media.pools.pools();
    let mut text = String::new();
    for pool in pools.iter() {
        text += &match &pool.problem {
            None => format!("\npool {} on {}\n", pool.name, pool.on),
            Some(problem) => format!("\npool {} is not available: {problem}\n", pool.name),
        };
    }
    if let Some(pool) = pools.iter().find(|pool| pool.problem.is_none()) {
        let named = match is_looked_for(control) {
            true => String::new(),
            false => format!(" --control {}", control.display()),
        };
        text += &format!(
            "  the next volume: corebay volume create {}/NAME --size 100GiB --export{named}\n",
            pool.name
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
