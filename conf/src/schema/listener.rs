//! `[[listener]]` and `[[referral]]`.

use std::net::SocketAddr;

use super::scalars;
use crate::appliance::Transport;
use crate::diagnostic::Span;
use crate::reader::{At, Field, Refusal, Section};
use crate::units::quoted;
use corebay_nvme::spec::nqn::Nqn;

const ADDRESS: &str = "an address and a port, as in \"0.0.0.0:4420\"";

/// `[[listener]]` by itself.
pub(crate) struct RawListener {
    pub(crate) name: Field<String>,
    pub(crate) address: Field<SocketAddr>,
    pub(crate) transport: Transport,
    pub(crate) discovery: bool,
    pub(crate) subsystems: At<bool>,
    /// Of the whole listener.
    pub(crate) span: Span,
}

/// Reads one `[[listener]]`.
pub(crate) fn read(mut section: Section<'_, '_>) -> RawListener {
    let raw = RawListener {
        name: section.parsed("name", "a name", scalars::name),
        address: section.parsed("address", ADDRESS, scalars::address),
        transport: transport(&mut section),
        discovery: section.boolean("discovery").or(true),
        subsystems: section.boolean("subsystems").or_at(true),
        span: section.span,
    };
    if raw.address.is_absent() {
        section.missing("address", "address = \"0.0.0.0:4420\"");
    }
    section.finish();
    raw
}

fn transport(section: &mut Section<'_, '_>) -> Transport {
    let read = section.parsed("transport", "\"tcp\"", |text| match text {
        "tcp" => Ok(Transport::Tcp),
        "rdma" | "vfio-user" | "fc" | "loop" | "pcie" => {
            let message = format!("the transport \"{text}\" is not there yet");
            Err(Refusal::new(
                message,
                "this version of corebay speaks \"tcp\" only",
            ))
        }
        _ => {
            let message = format!("{} is not a transport", quoted(text));
            Err(Refusal::new(message, "write transport = \"tcp\""))
        }
    });
    read.or(Transport::Tcp)
}

/// `[[referral]]` by itself.
pub(crate) struct RawReferral {
    pub(crate) address: Field<SocketAddr>,
    pub(crate) transport: Transport,
    pub(crate) nqn: Nqn,
}

/// Reads one `[[referral]]`.
pub(crate) fn read_referral(mut section: Section<'_, '_>) -> RawReferral {
    let raw = RawReferral {
        address: section.parsed("address", ADDRESS, scalars::address),
        transport: transport(&mut section),
        nqn: section
            .parsed("nqn", "an NQN", scalars::nqn)
            .or(Nqn::discovery()),
    };
    if raw.address.is_absent() {
        section.missing("address", "address = \"192.168.1.11:8009\"");
    }
    section.finish();
    raw
}
