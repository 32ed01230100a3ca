//! Listeners and referrals: names, addresses, and where two are in each other's way.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::appliance::{Listener, Referral};
use crate::diagnostic::{Draft, Sink, Span};
use crate::machine::{AddressState, Machine};
use crate::reader::At;
use crate::schema::{RawAppliance, RawListener};

pub(super) fn check(
    raw: &RawAppliance,
    machine: &dyn Machine,
    sink: &mut Sink,
) -> Option<Vec<Listener>> {
    if raw.listeners.is_empty() {
        let help = "add:\n[[listener]]\naddress = \"127.0.0.1:4420\"";
        sink.push(
            Draft::error("there is no [[listener]]: no host could connect")
                .help(help)
                .by_absence(),
        );
    }
    names(raw, sink);
    let mut seen: Vec<(SocketAddr, Option<Span>)> = Vec::new();
    for listener in &raw.listeners {
        if !listener.discovery && !listener.subsystems.value {
            let draft = Draft::error("this listener serves nothing")
                .at(listener.span, "neither discovery nor subsystems");
            sink.push(draft.help("leave out one of `discovery = false` and `subsystems = false`"));
        }
        let Some(address) = listener.address.given() else {
            continue;
        };
        if port_is_missing(address, raw.any_port, sink) {
            continue;
        }
        in_the_way(address, &seen, sink);
        seen.push((address.value, address.span));
        local(address, machine, sink);
    }
    raw.listeners.iter().map(made).collect()
}

fn made(raw: &RawListener) -> Option<Listener> {
    Some(Listener {
        name: raw.name.value().cloned(),
        transport: raw.transport,
        address: *raw.address.value()?,
        discovery: raw.discovery,
        subsystems: raw.subsystems.value,
    })
}

fn names(raw: &RawAppliance, sink: &mut Sink) {
    let mut seen: HashMap<&str, Option<Span>> = HashMap::new();
    for name in raw
        .listeners
        .iter()
        .filter_map(|listener| listener.name.given())
    {
        if let Some(first) = seen.get(name.value.as_str()) {
            let draft = Draft::error(format!("there are two listeners named `{}`", name.value));
            sink.push(
                draft
                    .at(name.span, "again here")
                    .and_at(*first, "first here"),
            );
        } else {
            seen.insert(&name.value, name.span);
        }
    }
}

fn port_is_missing(address: &At<SocketAddr>, any_port: bool, sink: &mut Sink) -> bool {
    let missing = address.value.port() == 0 && !any_port;
    if missing {
        let draft = Draft::error("port 0 is no port that a host can connect to");
        let draft = draft.at(address.span, "expected a port from 1 to 65535");
        sink.push(draft.help("4420 is the usual port for subsystems, 8009 for discovery"));
    }
    missing
}

fn in_the_way(address: &At<SocketAddr>, seen: &[(SocketAddr, Option<Span>)], sink: &mut Sink) {
    let Some((other, span)) = seen
        .iter()
        .find(|(other, _)| overlap(*other, address.value))
    else {
        return;
    };
    let draft = if *other == address.value {
        Draft::error(format!("there are two listeners on {other}")).at(address.span, "again here")
    } else {
        let label = format!("{other} listens there already");
        let draft = Draft::error(format!(
            "the listeners on {other} and {} overlap",
            address.value
        ));
        draft.at(address.span, label)
    };
    let help =
        "an address and port can be listened on once: leave one out, or give it another port";
    sink.push(draft.and_at(*span, "first here").help(help));
}

/// Whether the kernel would refuse the second. IPv6 listeners take IPv6 alone, so that the
/// families are never in each other's way.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip = one.ip() == other.ip();
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (same_ip || all)
}

fn local(address: &At<SocketAddr>, machine: &dyn Machine, sink: &mut Sink) {
    let ip: IpAddr = address.value.ip();
    let draft = match machine.address(ip) {
        AddressState::Local => return,
        AddressState::NotLocal => Draft::error(format!("this machine does not have the address {ip}"))
            .help("`ip address` shows the addresses that it has; \"0.0.0.0\" and \"[::]\" are all of them"),
        AddressState::Unusable(why) => Draft::error(format!("the address {ip} cannot be listened on: {why}")),
    };
    sink.push(draft.at(address.span, "expected an address of this machine"));
}

pub(super) fn check_referrals(raw: &RawAppliance, sink: &mut Sink) -> Option<Vec<Referral>> {
    let mut seen: HashMap<SocketAddr, Option<Span>> = HashMap::new();
    for referral in &raw.referrals {
        let Some(address) = referral.address.given() else {
            continue;
        };
        if port_is_missing(address, false, sink) {
            continue;
        }
        if address.value.ip().is_unspecified() {
            let draft = Draft::error(
                "a referral tells hosts where to go: it needs the address of a machine",
            );
            sink.push(draft.at(
                address.span,
                "expected an address that hosts can connect to",
            ));
        }
        if let Some(first) = seen.get(&address.value) {
            let draft = Draft::error(format!("there are two referrals to {}", address.value));
            sink.push(
                draft
                    .at(address.span, "again here")
                    .and_at(*first, "first here"),
            );
        } else {
            seen.insert(address.value, address.span);
        }
        let own = raw
            .listeners
            .iter()
            .filter_map(|listener| listener.address.given());
        if let Some(own) = own.into_iter().find(|own| own.value == address.value) {
            let draft = Draft::error("a referral to this appliance itself").at(address.span, "");
            let help = "hosts that ask here are told of this appliance anyway: leave it out";
            sink.push(draft.and_at(own.span, "it listens here").help(help));
        }
    }
    let made = raw.referrals.iter().map(|raw| {
        let address = *raw.address.value()?;
        Some(Referral {
            address,
            transport: raw.transport,
            nqn: raw.nqn.clone(),
        })
    });
    made.collect()
}
