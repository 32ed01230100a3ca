//! Identify (Base 2.1, 5.1.13; NVM Command Set 1.1, 4.1.5).

use std::sync::Arc;

use corebay_nvme::spec::{
    ascii,
    command::{SubmissionEntry, admin::Identify},
    identify::{
        CommandSetCombinations, ControllerList, IDENTIFY_BYTES, IdentifyController,
        IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceIndependent,
        IdentifyNamespaceNvm, NamespaceIdentifier, NamespaceList, cns,
        controller::{anacap, cmic, cntrltype, ctratt, fuses, lpa, oaes, ofcs, oncs, sgls, vwc},
        csi, encode_descriptors,
        namespace::{dlfeat, nmic, nsattr, nsfeat, nstat},
    },
    status::Status,
};
use zerocopy::{FromZeros, IntoBytes, little_endian::U16, little_endian::U32, little_endian::U64};

use super::commands;
use crate::{
    core::Core,
    environment::Environment,
    fabrics::VERSION,
    io::FUSED_BLOCKS_MAX,
    limits::{
        ABORTS_MAX, ADMIN_QUEUE_DEPTH_MAX, ASYNC_EVENT_REQUESTS_MAX, COPY_BLOCKS_MAX,
        COPY_RANGE_BLOCKS_MAX, COPY_RANGES_MAX, DSM_BLOCKS_MAX, ERROR_LOG_ENTRIES,
        KEEP_ALIVE_GRANULARITY_100MS, NAMESPACES_MAX,
    },
    namespace::NamespaceSpec,
    queue::Binding,
};

/// The ANA group that all namespaces are in.
pub const ANA_GROUP: u32 = 1;

/// The size of a submission queue entry, required and maximum, as powers of two (SQES).
const SQES: u8 = 0x66;

/// The same for completion queue entries (CQES).
const CQES: u8 = 0x44;

/// Firmware updates: one slot, read only (FRMW).
const FRMW: u8 = 0x03;

/// The page that Identify asks for.
pub fn page<E: Environment>(
    core: &Core<E>,
    binding: &Binding<E>,
    sqe: &SubmissionEntry,
) -> Result<Vec<u8>, Status> {
    let command = Identify::from(sqe);
    let subsystem = &binding.controller.subsystem;
    let nsid = sqe.nsid.get();
    if subsystem.is_discovery() && command.cns != cns::CONTROLLER {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let nvm_only = || match command.csi {
        csi::NVM => Ok(()),
        _ => Err(Status::COMMAND_SET_NOT_SUPPORTED.with_dnr()),
    };
    let listed = || {
        subsystem
            .namespaces()
            .into_iter()
            .map(|namespace| namespace.nsid)
    };
    match command.cns {
        cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => Ok(match attached(binding, nsid)? {
            Some(spec) => namespace(&spec).as_bytes().to_vec(),
            None => vec![0; IDENTIFY_BYTES],
        }),
        cns::CONTROLLER => Ok(controller(core, binding).as_bytes().to_vec()),
        cns::ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES => namespace_list(nsid, listed()),
        cns::CSI_ACTIVE_NAMESPACES | cns::CSI_ALLOCATED_NAMESPACES => {
            nvm_only()?;
            namespace_list(nsid, listed())
        }
        cns::NAMESPACE_DESCRIPTORS => {
            let spec = attached(binding, nsid)?;
            let spec = spec.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
            Ok(descriptors(&spec))
        }
        cns::CSI_NAMESPACE => {
            nvm_only()?;
            attached(binding, nsid)?;
            Ok(IdentifyNamespaceNvm::new_zeroed().as_bytes().to_vec())
        }
        cns::CSI_CONTROLLER => {
            nvm_only()?;
            let mut page = IdentifyControllerNvm::new_zeroed();
            page.dmrsl = U32::new(DSM_BLOCKS_MAX);
            page.dmsl = U64::new(u64::from(DSM_BLOCKS_MAX));
            Ok(page.as_bytes().to_vec())
        }
        cns::INDEPENDENT_NAMESPACE => Ok(match attached(binding, nsid)? {
            Some(spec) => independent(&spec).as_bytes().to_vec(),
            None => vec![0; IDENTIFY_BYTES],
        }),
        cns::ATTACHED_CONTROLLERS => {
            let spec = attached(binding, nsid)?;
            let ids = if spec.is_some() {
                controller_ids(binding)
            } else {
                Vec::new()
            };
            Ok(controller_list(command.cntid, ids))
        }
        cns::CONTROLLERS => Ok(controller_list(command.cntid, controller_ids(binding))),
        cns::COMMAND_SETS => {
            let mut sets = CommandSetCombinations::new_zeroed();
            sets.fill_nvm_only();
            Ok(sets.as_bytes().to_vec())
        }
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

/// The namespace with a valid id, if it is attached.
fn attached<E: Environment>(
    binding: &Binding<E>,
    nsid: u32,
) -> Result<Option<Arc<NamespaceSpec<E::Medium>>>, Status> {
    if nsid == 0 || nsid > NAMESPACES_MAX {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    Ok(binding.controller.subsystem.namespace(nsid))
}

fn namespace_list(after: u32, nsids: impl Iterator<Item = u32>) -> Result<Vec<u8>, Status> {
    if after >= u32::MAX - 1 {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    let mut list = NamespaceList::new_zeroed();
    list.fill(after, nsids);
    Ok(list.as_bytes().to_vec())
}

fn controller_ids<E: Environment>(binding: &Binding<E>) -> Vec<u16> {
    binding
        .controller
        .subsystem
        .controllers()
        .iter()
        .map(|c| c.cntlid)
        .collect()
}

fn controller_list(start: u16, ids: Vec<u16>) -> Vec<u8> {
    let mut list = ControllerList::new_zeroed();
    list.fill(start, ids);
    list.as_bytes().to_vec()
}

fn descriptors<M>(spec: &NamespaceSpec<M>) -> Vec<u8> {
    let identity = &spec.identity;
    let mut names = Vec::with_capacity(4);
    if identity.eui64 != [0; 8] {
        names.push(NamespaceIdentifier::Eui64(identity.eui64));
    }
    if identity.nguid != [0; 16] {
        names.push(NamespaceIdentifier::Nguid(identity.nguid));
    }
    if identity.uuid != [0; 16] {
        names.push(NamespaceIdentifier::Uuid(identity.uuid));
    }
    names.push(NamespaceIdentifier::Csi(csi::NVM));
    let mut page = [0; IDENTIFY_BYTES];
    encode_descriptors(&names, &mut page);
    page.to_vec()
}

fn namespace<M>(spec: &NamespaceSpec<M>) -> IdentifyNamespace {
    let info = &spec.info;
    let mut page = IdentifyNamespace::new_zeroed();
    let (size, capacity, used) = spec.sizes();
    page.nsze = U64::new(size);
    page.ncap = U64::new(capacity);
    page.nuse = U64::new(used);
    page.nsfeat = nsfeat::OPTIMAL_PERFORMANCE;
    if spec.is_thin() {
        page.nsfeat |= nsfeat::THIN;
    }
    page.nmic = nmic::SHARED;
    page.dlfeat = dlfeat::READ_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATE;
    page.nvmcap = u128::from(spec.bytes()).to_le_bytes();
    // Writes and deallocations are best in pages of 4 KiB, whatever the block size; 0's based.
    let page_blocks = (4096 / info.block_size.bytes()) as u16;
    page.npwg = U16::new(page_blocks - 1);
    page.npwa = U16::new(page_blocks - 1);
    let granularity = info
        .deallocate_granularity
        .unwrap_or(u32::from(page_blocks));
    let granularity = u16::try_from(granularity.max(1) - 1).unwrap_or(u16::MAX);
    page.npdg = U16::new(granularity);
    page.npda = U16::new(granularity);
    page.mssrl = U16::new(COPY_RANGE_BLOCKS_MAX);
    page.mcl = U32::new(COPY_BLOCKS_MAX);
    page.msrc = (COPY_RANGES_MAX - 1) as u8;
    page.anagrpid = U32::new(ANA_GROUP);
    page.nsattr = if spec.is_read_only() {
        nsattr::WRITE_PROTECTED
    } else {
        0
    };
    page.nguid = spec.identity.nguid;
    page.eui64 = spec.identity.eui64;
    page.lbaf[0].lbads = info.block_size.shift() as u8;
    page
}

fn independent<M>(spec: &NamespaceSpec<M>) -> IdentifyNamespaceIndependent {
    let mut page = IdentifyNamespaceIndependent::new_zeroed();
    page.nmic = nmic::SHARED;
    page.anagrpid = U32::new(ANA_GROUP);
    page.nsattr = if spec.is_read_only() {
        nsattr::WRITE_PROTECTED
    } else {
        0
    };
    page.nstat = nstat::READY;
    page
}

fn controller<E: Environment>(core: &Core<E>, binding: &Binding<E>) -> IdentifyController {
    let controller = &binding.controller;
    let names = &controller.subsystem.names;
    let mut page = IdentifyController::new_zeroed();
    page.sn = ascii::pad(&names.serial);
    page.mn = ascii::pad(&names.model);
    page.fr = ascii::pad(env!("CARGO_PKG_VERSION"));
    page.cntlid = U16::new(controller.cntlid);
    page.ver = U32::new(VERSION.0);
    page.mdts = (core.limits.transfer_bytes_max / 4096).ilog2() as u8;
    page.ctratt = U32::new(ctratt::HOST_ID_128 | ctratt::TRAFFIC_KEEP_ALIVE);
    page.aerl = (ASYNC_EVENT_REQUESTS_MAX - 1) as u8;
    page.elpe = (ERROR_LOG_ENTRIES - 1) as u8;
    page.kas = U16::new(KEEP_ALIVE_GRANULARITY_100MS);
    page.lpa = lpa::EXTENDED_DATA | lpa::SUPPORTED_PAGES;
    page.frmw = FRMW;
    page.sgls = U32::new(sgls::SUPPORTED | sgls::OVERSIZE | sgls::OFFSET | sgls::TRANSPORT);
    names.nqn.write_field(&mut page.subnqn);
    if controller.subsystem.is_discovery() {
        page.cntrltype = cntrltype::DISCOVERY;
        page.oaes = U32::new(oaes::DISCOVERY_LOG_CHANGE);
        page.maxcmd = U16::new(ADMIN_QUEUE_DEPTH_MAX);
    } else {
        io_controller(core, binding, &mut page);
    }
    page
}

/// What only controllers with namespaces have.
fn io_controller<E: Environment>(
    core: &Core<E>,
    binding: &Binding<E>,
    page: &mut IdentifyController,
) {
    let namespaces = binding.controller.subsystem.namespaces();
    let bytes: u128 = namespaces.iter().map(|n| u128::from(n.bytes())).sum();
    let commands = commands::io(&namespaces).fold(0, |bits, command| bits | command.oncs);
    let cached = binding.controller.subsystem.has_volatile_cache();
    page.cntrltype = cntrltype::IO;
    page.cmic = cmic::MULTI_PORT | cmic::MULTI_CONTROLLER | cmic::ANA_REPORTING;
    page.oaes = U32::new(oaes::NAMESPACE_ATTRIBUTE | oaes::ANA_CHANGE);
    page.acl = ABORTS_MAX - 1;
    page.lpa |= lpa::COMMAND_EFFECTS;
    page.tnvmcap = bytes.to_le_bytes();
    page.anatt = 10;
    page.anacap = anacap::OPTIMIZED;
    page.anagrpmax = U32::new(ANA_GROUP);
    page.nanagrpid = U32::new(ANA_GROUP);
    page.sqes = SQES;
    page.cqes = CQES;
    page.maxcmd = U16::new(core.limits.queue_depth_max);
    page.nn = U32::new(NAMESPACES_MAX);
    page.mnan = U32::new(NAMESPACES_MAX);
    page.oncs = U16::new(commands | oncs::SAVE_SELECT | oncs::TIMESTAMP);
    page.fuses = U16::new(fuses::COMPARE_AND_WRITE);
    page.vwc = vwc::FLUSH_ALL_SUPPORTED | if cached { vwc::PRESENT } else { 0 };
    // One block is atomic; 0's based. Where a medium keeps less than a block whole when the power
    // fails, AWUPF has no way to say so, and the appliance says it at its start.
    page.awun = U16::new(0);
    page.awupf = U16::new(0);
    page.acwu = U16::new((FUSED_BLOCKS_MAX - 1) as u16);
    // Copy descriptor format 0h.
    page.cdfs = U16::new(1);
    let capsule = 64 + core.limits.in_capsule_bytes;
    page.ioccsz = U32::new((capsule / 16) as u32);
    page.iorcsz = U32::new(1);
    page.msdbd = 1;
    page.ofcs = U16::new(ofcs::DISCONNECT);
}
