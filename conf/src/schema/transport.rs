//! `[transport.tcp]`.

use std::time::Duration;

use crate::appliance::{Digest, Tcp};
use crate::diagnostic::Draft;
use crate::limits;
use crate::reader::{At, Section};
use crate::units::{Size, TimeSpan};

const PAGE: Size = Size::KIB.times(4);
/// In-capsule data is counted in blocks, though the wire (IOCCSZ) could say 16 bytes.
const SECTOR: Size = Size::from_bytes(512);
const STALL_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const STALL_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// NVMe Base 2.1, CAP.MQES: a queue has at least two entries.
const QUEUE_DEPTH_MIN: u64 = 2;

/// What is not said in the file.
pub(crate) fn default() -> Tcp {
    Tcp {
        max_transfer: Size::MIB,
        in_capsule: Size::KIB.times(8),
        max_h2c_data: Size::MIB,
        queue_depth: 1024,
        io_queues: 128,
        header_digest: Digest::Allow,
        data_digest: Digest::Allow,
        max_connections: 1024,
        stall_timeout: Duration::from_secs(30),
    }
}

/// Reads `[transport]`, where it is there.
pub(crate) fn read(section: Option<Section<'_, '_>>) -> Tcp {
    let mut tcp = default();
    let Some(mut transport) = section else {
        return tcp;
    };
    if let Some(mut section) = transport.table("tcp", "[transport.tcp]", "`[transport.tcp]`") {
        read_sizes(&mut section, &mut tcp);
        read_counts(&mut section, &mut tcp);
        let digests = [
            ("allow", Digest::Allow),
            ("require", Digest::Require),
            ("off", Digest::Off),
        ];
        tcp.header_digest = section
            .choice("header_digest", &digests)
            .or(tcp.header_digest);
        tcp.data_digest = section.choice("data_digest", &digests).or(tcp.data_digest);
        let range = TimeSpan::from(STALL_TIMEOUT_MIN)..=TimeSpan::from(STALL_TIMEOUT_MAX);
        let stall_timeout = section.time("stall_timeout", range).map(TimeSpan::duration);
        tcp.stall_timeout = stall_timeout.or(tcp.stall_timeout);
        section.finish();
    }
    transport.finish();
    tcp
}

fn read_sizes(section: &mut Section<'_, '_>, tcp: &mut Tcp) {
    let max_transfer = section
        .size("max_transfer", PAGE..=Size::MIB)
        .or_at(tcp.max_transfer);
    if !max_transfer.value.bytes().is_power_of_two() {
        let draft = Draft::error("`max_transfer` is no power of two");
        let draft = draft.at(
            max_transfer.span,
            format!("expected {PAGE} times a power of two"),
        );
        section.sink.push(
            draft.help("it is announced as MDTS: \"128KiB\", \"256KiB\", \"512KiB\" or \"1MiB\""),
        );
    }
    tcp.max_transfer = max_transfer.value;
    let in_capsule = section.size("in_capsule", Size::from_bytes(0)..=Size::KIB.times(16));
    tcp.in_capsule = multiple_of(
        section,
        "in_capsule",
        SECTOR,
        in_capsule.or_at(tcp.in_capsule),
    );
    let max_h2c_data = section.size("max_h2c_data", PAGE..=Size::MIB);
    tcp.max_h2c_data = multiple_of(
        section,
        "max_h2c_data",
        PAGE,
        max_h2c_data.or_at(tcp.max_h2c_data),
    );
}

fn multiple_of(section: &mut Section<'_, '_>, key: &str, unit: Size, size: At<Size>) -> Size {
    if !size.value.bytes().is_multiple_of(unit.bytes()) {
        let draft = Draft::error(format!("`{key}` is no multiple of {unit}"));
        section
            .sink
            .push(draft.at(size.span, format!("expected a multiple of {unit}")));
    }
    size.value
}

fn read_counts(section: &mut Section<'_, '_>, tcp: &mut Tcp) {
    let small = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    let queue_depth = section.integer("queue_depth", QUEUE_DEPTH_MIN..=limits::QUEUE_DEPTH_MAX);
    tcp.queue_depth = queue_depth.map(small).or(tcp.queue_depth);
    let io_queues = section.integer("io_queues", 1..=limits::IO_QUEUES_MAX);
    tcp.io_queues = io_queues.map(small).or(tcp.io_queues);
    let max_connections = section.integer("max_connections", 1..=limits::CONNECTIONS_MAX);
    let max_connections = max_connections.map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    tcp.max_connections = max_connections.or(tcp.max_connections);
}
