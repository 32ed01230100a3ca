//! The discovery log page (Base 2.1, 5.1.12.3.1): what this host may connect to, and where.
//!
//! Invariants:
//! - A host is told of the subsystems that admit it, and of no others.
//! - An address that stands for all of the machine's is told as the one that the host came by.

use std::net::{IpAddr, SocketAddr};

use corebay_nvme::spec::{
    fabrics::CNTLID_DYNAMIC,
    log::{DiscoveryLogEntry, DiscoveryLogHeader, adrfam, eflags, subtype, treq, trtype},
    nqn::Nqn,
};
use zerocopy::{FromZeros, IntoBytes, little_endian::U16, little_endian::U64};

use crate::subsystem::{Listen, Registry, TransportType};

/// Entries of the admin queue that hosts are told of (ASQSZ).
const ADMIN_QUEUE_ENTRIES: u16 = 32;

/// The whole log page for a host that came by `local`.
#[must_use]
pub fn log_page<M>(registry: &Registry<M>, host: &Nqn, local: Option<SocketAddr>) -> Vec<u8> {
    let (generation, listens, referrals) = registry.discovery_view();
    let mut entries = Vec::new();
    for listen in listens.iter().filter(|listen| listen.discovery) {
        if let Some(address) = told(listen, local) {
            let nqn = Nqn::discovery();
            let mut entry = entry(subtype::CURRENT_DISCOVERY, listen.port_id, address, &nqn);
            entry.trtype = transport(listen.transport);
            entry.eflags = U16::new(eflags::PERSISTENT_CONNECTIONS | eflags::DUPLICATE_INFORMATION);
            entries.push(entry);
        }
    }
    for subsystem in registry
        .subsystems()
        .iter()
        .filter(|subsystem| subsystem.admits(host))
    {
        for listen in listens
            .iter()
            .filter(|listen| subsystem.is_served_at(listen))
        {
            if let Some(address) = told(listen, local) {
                let nqn = &subsystem.names.nqn;
                let mut entry = entry(subtype::NVM, listen.port_id, address, nqn);
                entry.trtype = transport(listen.transport);
                entries.push(entry);
            }
        }
    }
    for referral in &referrals {
        let mut entry = entry(subtype::REFERRAL, 0, referral.address, &referral.nqn);
        entry.trtype = transport(referral.transport);
        entries.push(entry);
    }
    let mut header = DiscoveryLogHeader::new_zeroed();
    header.genctr = U64::new(generation);
    header.numrec = U64::new(entries.len() as u64);
    let mut page = header.as_bytes().to_vec();
    page.extend_from_slice(entries.as_bytes());
    page
}

/// The address to tell a host; `None` where it cannot reach it from where it came.
fn told(listen: &Listen, local: Option<SocketAddr>) -> Option<SocketAddr> {
    if !listen.address.ip().is_unspecified() {
        return Some(listen.address);
    }
    let local = local?;
    let same_family = local.is_ipv4() == listen.address.is_ipv4();
    same_family.then(|| SocketAddr::new(local.ip(), listen.address.port()))
}

fn transport(transport: TransportType) -> u8 {
    match transport {
        TransportType::Tcp => trtype::TCP,
    }
}

fn entry(subtype: u8, port_id: u16, address: SocketAddr, nqn: &Nqn) -> DiscoveryLogEntry {
    let mut entry = DiscoveryLogEntry::new_zeroed();
    entry.subtype = subtype;
    entry.adrfam = match address.ip() {
        IpAddr::V4(_) => adrfam::IPV4,
        IpAddr::V6(_) => adrfam::IPV6,
    };
    entry.treq = treq::SECURE_CHANNEL_NOT_REQUIRED | treq::DISABLE_SQ_FLOW_CONTROL;
    entry.portid = U16::new(port_id);
    entry.cntlid = U16::new(CNTLID_DYNAMIC);
    entry.asqsz = U16::new(ADMIN_QUEUE_ENTRIES);
    space_padded(&mut entry.trsvcid, &address.port().to_string());
    space_padded(&mut entry.traddr, &address.ip().to_string());
    nqn.write_field(&mut entry.subnqn);
    entry
}

/// ASCII strings of the specification are padded with spaces (Base 2.1, 1.4.2).
fn space_padded(field: &mut [u8], text: &str) {
    field.fill(b' ');
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text.as_bytes()[..count]);
}
