//! Opens the disks that a configuration names, and says what each subsystem exports.

use std::sync::Arc;

use corebay_conf::{
    Appliance, LocalMachine, Machine,
    appliance::{Access as ConfiguredAccess, Disk, DiskKind, Namespace, Subsystem},
    machine::PathState,
};
use corebay_core::{
    disk::{
        file::{Caching, FileMedium, FileMediumOptions},
        ram::RamMedium,
    },
    units::BlockSize,
};
use corebay_target::{
    namespace::{Identity, NamespaceSpec},
    subsystem::{Access, Registry, SubsystemId, SubsystemNames},
};

use super::{environment::Medium, state::State};
use crate::cli::Failure;

/// What all cores serve, and the namespaces that each of them opens.
pub struct Exports {
    /// The registry of the process.
    pub registry: Arc<Registry<Medium>>,
    /// The namespaces, by subsystem.
    pub namespaces: Vec<(SubsystemId, Arc<NamespaceSpec<Medium>>)>,
}

/// Opens all disks, and makes the subsystems.
pub fn open(appliance: &Appliance, state: &mut State) -> Result<Exports, Failure> {
    let media: Vec<Medium> =
        appliance.disks().iter().map(open_disk).collect::<Result<_, _>>()?;
    let registry = Registry::default();
    registry.set_health(state.health());
    let mut namespaces = Vec::new();
    for configured in appliance.subsystems() {
        let names = SubsystemNames {
            nqn: configured.nqn.clone(),
            serial: configured.serial.as_str().to_owned(),
            model: configured.model.as_str().to_owned(),
        };
        let ports = configured.listeners.iter().map(|listener| port_id(listener.index())).collect();
        let subsystem = registry.add_subsystem(names, access(configured), Some(ports));
        for namespace in &configured.namespaces {
            let disk = appliance.disk(namespace.disk);
            let medium = media[namespace.disk.index()].clone();
            let identity = identity(configured, namespace, disk, state);
            let spec = Arc::new(NamespaceSpec {
                nsid: namespace.nsid,
                identity,
                info: medium.info(),
                medium,
                read_only: namespace.read_only,
                counters: Default::default(),
            });
            subsystem.add_namespace(spec.clone());
            namespaces.push((subsystem.id, spec));
        }
    }
    Ok(Exports { registry: Arc::new(registry), namespaces })
}

/// The port identifier of a listener: its place in the configuration, from 1.
pub fn port_id(index: usize) -> u16 {
    u16::try_from(index + 1).unwrap_or(u16::MAX)
}

fn access(subsystem: &Subsystem) -> Access {
    match &subsystem.access {
        ConfiguredAccess::AnyHost => Access::Any,
        ConfiguredAccess::Hosts(hosts) => Access::Hosts(hosts.iter().cloned().collect()),
    }
}

fn identity(
    subsystem: &Subsystem,
    namespace: &Namespace,
    disk: &Disk,
    state: &mut State,
) -> Identity {
    let uuid = namespace.uuid.unwrap_or_else(|| state.namespace_uuid(&subsystem.nqn, &disk.name));
    // Unless one is given, the NGUID holds the same 128 bits: hosts that know only one of the two
    // still recognise the namespace.
    let nguid = namespace.nguid.map_or(*uuid.as_bytes(), |nguid| nguid.bytes());
    let eui64 = namespace.eui64.map_or([0; 8], |eui64| eui64.bytes());
    Identity { uuid: *uuid.as_bytes(), nguid, eui64 }
}

fn open_disk(disk: &Disk) -> Result<Medium, Failure> {
    let block_size = match disk.block_size {
        Some(corebay_conf::BlockSize::B512) => BlockSize::B512,
        Some(corebay_conf::BlockSize::B4096) => BlockSize::B4096,
        None => own_block_size(disk)?,
    };
    let file = |path, options| {
        FileMedium::open(path, options).map(Medium::File).map_err(|error| {
            Failure::new(format!("disk \"{}\": {error}", disk.name), String::new())
        })
    };
    match &disk.kind {
        DiskKind::File { path, size, create } => file(
            path,
            FileMediumOptions {
                block_size,
                bytes: size.map(|size| size.bytes()),
                create: *create,
                caching: Caching::Direct,
            },
        ),
        DiskKind::Device { path } => file(path, FileMediumOptions::new(block_size)),
        DiskKind::Ram { size } => {
            let blocks = block_size.blocks_in(size.bytes());
            RamMedium::new(block_size, blocks).map(Medium::Ram).map_err(|error| {
                Failure::new(
                    format!("disk \"{}\": no {size} of address space: {error}", disk.name),
                    "make the disk smaller",
                )
            })
        }
        DiskKind::Null { size } => Ok(Medium::Null(block_size, block_size.blocks_in(size.bytes()))),
    }
}

/// The block size that a kernel block device itself has.
fn own_block_size(disk: &Disk) -> Result<BlockSize, Failure> {
    let DiskKind::Device { path } = &disk.kind else { return Ok(BlockSize::B4096) };
    let bytes = match LocalMachine.path(path) {
        PathState::BlockDevice { block_size, .. } => u64::from(block_size),
        _ => 0,
    };
    BlockSize::from_bytes(bytes).ok_or_else(|| {
        Failure::new(
            format!("disk \"{}\": {} has blocks of {bytes} bytes", disk.name, path.display()),
            "only blocks of 512 and 4096 bytes can be exported; format the device with one of them",
        )
    })
}
