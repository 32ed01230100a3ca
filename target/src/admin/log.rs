//! Get Log Page (Base 2.1, 5.1.12).

use std::{net::SocketAddr, sync::atomic::Ordering};

use corebay_nvme::spec::{
    command::{SubmissionEntry, admin::GetLogPage},
    log::{
        AnaGroupDescriptor, AnaLogHeader, AnaState, ChangedNamespaceList,
        CommandsSupportedAndEffects, ErrorLogEntry, FeatureIdentifiersEffects, FirmwareSlotLog,
        SmartLog, SupportedLogPages, ana_lsp, command_effects, critical_warning, feature_effects,
        lid, log_support,
    },
    status::Status,
};
use zerocopy::{FromZeros, IntoBytes, little_endian::U16, little_endian::U32, little_endian::U64};

use super::{commands, feature, identify::ANA_GROUP};
use crate::{
    controller::Controller, core::Core, discovery, environment::Environment,
    limits::ERROR_LOG_ENTRIES, queue::Binding,
};

/// Log pages of controllers with namespaces.
const IO_PAGES: [u8; 8] = [
    lid::SUPPORTED_LOG_PAGES,
    lid::ERROR,
    lid::SMART,
    lid::FIRMWARE_SLOT,
    lid::CHANGED_NAMESPACES,
    lid::COMMAND_EFFECTS,
    lid::ANA,
    lid::FEATURE_EFFECTS,
];

/// Log pages of discovery controllers.
const DISCOVERY_PAGES: [u8; 3] = [lid::SUPPORTED_LOG_PAGES, lid::ERROR, lid::DISCOVERY];

/// All of the log page that is asked for.
pub fn page<E: Environment>(
    core: &Core<E>,
    binding: &Binding<E>,
    sqe: &SubmissionEntry,
    command: &GetLogPage,
    local: Option<SocketAddr>,
) -> Result<Vec<u8>, Status> {
    let controller = &binding.controller;
    let pages: &[u8] = if controller.subsystem.is_discovery() {
        &DISCOVERY_PAGES
    } else {
        &IO_PAGES
    };
    if !pages.contains(&command.lid) {
        return Err(Status::INVALID_LOG_PAGE.with_dnr());
    }
    Ok(match command.lid {
        lid::SUPPORTED_LOG_PAGES => supported(pages),
        lid::ERROR => errors(binding),
        lid::SMART => {
            if !matches!(sqe.nsid.get(), 0 | u32::MAX) {
                // LPA bit 0 is clear: it is the controller's log alone.
                return Err(Status::INVALID_FIELD.with_dnr());
            }
            smart(core, binding)
        }
        lid::FIRMWARE_SLOT => firmware(),
        lid::CHANGED_NAMESPACES => {
            let mut list = ChangedNamespaceList::new_zeroed();
            list.fill(controller.changed_namespaces(!command.rae));
            list.as_bytes().to_vec()
        }
        lid::COMMAND_EFFECTS => effects(binding),
        lid::ANA => ana(binding, command.lsp & ana_lsp::GROUPS_ONLY != 0),
        lid::FEATURE_EFFECTS => feature_identifiers(controller),
        _ => discovery::log_page(&core.registry, &controller.host_nqn, local),
    })
}

fn supported(pages: &[u8]) -> Vec<u8> {
    let mut log = SupportedLogPages::new_zeroed();
    for &page in pages {
        log.lids[usize::from(page)] = U32::new(log_support::LSUPP);
    }
    log.as_bytes().to_vec()
}

fn errors<E: Environment>(binding: &Binding<E>) -> Vec<u8> {
    let (records, _) = binding.controller.errors();
    let mut log = Vec::with_capacity(ERROR_LOG_ENTRIES * size_of::<ErrorLogEntry>());
    for record in records {
        let mut entry = ErrorLogEntry::new_zeroed();
        entry.error_count = U64::new(record.count);
        entry.sqid = U16::new(record.sqid);
        entry.cid = U16::new(record.cid);
        entry.status_field = U16::new(record.status.to_wire(false));
        entry.parameter_error_location = U16::new(u16::MAX);
        entry.lba = U64::new(record.lba);
        entry.nsid = U32::new(record.nsid);
        entry.opc = record.opc;
        log.extend_from_slice(entry.as_bytes());
    }
    log.resize(ERROR_LOG_ENTRIES * size_of::<ErrorLogEntry>(), 0);
    log
}

/// Data units are thousands of 512 bytes, rounded up (Base 2.1, figure 206).
fn data_units(bytes: u64) -> [u8; 16] {
    u128::from(bytes.div_ceil(512_000)).to_le_bytes()
}

fn smart<E: Environment>(core: &Core<E>, binding: &Binding<E>) -> Vec<u8> {
    const NANOS_PER_MINUTE: u64 = 60_000_000_000;
    let controller = &binding.controller;
    let totals = controller.subsystem.totals();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let wide = |value: u64| u128::from(value).to_le_bytes();
    let (_, error_count) = controller.errors();
    let health = core.registry.health();
    let up = core.reactor.now().0 / 1_000_000_000;
    let mut log = SmartLog::new_zeroed();
    let spare = controller.subsystem.spare();
    log.available_spare = spare.percent;
    log.available_spare_threshold = spare.threshold_percent;
    if spare.low {
        log.critical_warning |= critical_warning::SPARE;
    }
    log.data_units_read = data_units(count(&totals.read_bytes));
    log.data_units_written = data_units(count(&totals.written_bytes));
    log.host_read_commands = wide(count(&totals.reads));
    log.host_write_commands = wide(count(&totals.writes));
    log.controller_busy_time = wide(count(&totals.busy_nanos) / NANOS_PER_MINUTE);
    log.power_cycles = wide(health.starts);
    log.power_on_hours = wide((health.seconds_before + up) / 3600);
    log.unsafe_shutdowns = wide(health.unclean_stops);
    log.media_errors = wide(count(&totals.media_errors));
    log.error_log_entries = wide(error_count);
    log.as_bytes().to_vec()
}

fn firmware() -> Vec<u8> {
    let mut log = FirmwareSlotLog::new_zeroed();
    log.afi = 1;
    log.frs[0] = corebay_nvme::spec::ascii::pad(env!("CARGO_PKG_VERSION"));
    log.as_bytes().to_vec()
}

fn effects<E: Environment>(binding: &Binding<E>) -> Vec<u8> {
    let mut log = CommandsSupportedAndEffects::new_zeroed();
    for opcode in commands::ADMIN {
        log.acs[usize::from(opcode)] = U32::new(command_effects::CSUPP);
    }
    for command in commands::io(&binding.controller.subsystem.namespaces()) {
        log.iocs[usize::from(command.opcode)] = U32::new(command.effects);
    }
    log.as_bytes().to_vec()
}

fn ana<E: Environment>(binding: &Binding<E>, groups_only: bool) -> Vec<u8> {
    let namespaces = binding.controller.subsystem.namespaces();
    let listed = if groups_only {
        &[][..]
    } else {
        &namespaces[..]
    };
    let header = AnaLogHeader::new(0, 1);
    let group = AnaGroupDescriptor::new(ANA_GROUP, listed.len() as u32, 0, AnaState::Optimized);
    let mut log = [header.as_bytes(), group.as_bytes()].concat();
    for namespace in listed {
        log.extend_from_slice(&namespace.nsid.to_le_bytes());
    }
    log
}

fn feature_identifiers<M>(controller: &Controller<M>) -> Vec<u8> {
    let mut log = FeatureIdentifiersEffects::new_zeroed();
    for fid in feature::known(controller) {
        log.fids[usize::from(fid)] =
            U32::new(feature_effects::FSUPP | feature_effects::SCOPE_CONTROLLER);
    }
    log.as_bytes().to_vec()
}
