//! Opens the disks that a configuration names, and says what each subsystem exports.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, mpsc},
};

use corebay_conf::{
    Appliance, LocalMachine, Machine,
    appliance::{Access as ConfiguredAccess, Disk, DiskKind, Namespace, Store, Subsystem},
    machine::PathState,
};
use corebay_core::{
    disk::{
        file::{
            Caching, FileError, FileErrorReason, FileMedium, FileMediumOptions, default_block_size,
        },
        ram::RamMedium,
    },
    units::BlockSize,
};
use corebay_nvme::{pcie::Drive, vfio::VfioRegisters};
use corebay_target::{
    namespace::{Identity, NamespaceSpec},
    subsystem::{Access, Registry, SubsystemId, SubsystemNames},
};
use tracing::{error, warn};

use super::{
    arrays::{self, ArrayMedium, ArrayMemory, Named},
    drives::{Drives, NvmeMedium, Returned, Up},
    environment::{Medium, PlainMedium},
    keeper::Event,
    kept,
    making::Making,
    manage::Stopped,
    pools::{self, AtStart, PoolBook, PoolMemory},
    reserve::Reserve,
    state::State,
};
use crate::cli::Failure;

/// What all cores serve, and the namespaces that each of them opens.
pub struct Exports {
    /// The registry of the process.
    pub registry: Arc<Registry<Medium>>,
    /// The namespaces, by subsystem.
    pub namespaces: Vec<(SubsystemId, Arc<NamespaceSpec<Medium>>)>,
    /// The disks that are open.
    pub media: Media,
    /// The pools that are to be opened.
    pub pools: Option<AtStart>,
}

/// The disks that are open, by what the configuration says of them.
pub struct Media {
    open: Vec<(DiskKey, PlainMedium)>,
    /// Members of arrays that could not be opened, by name, and why.
    missing: BTreeMap<String, String>,
    /// In the order of the configuration, then as they were made.
    arrays: Vec<Arc<ArrayMedium>>,
    /// What is known of the pools.
    pub pools: PoolBook,
    /// Arrays that cannot be had now, and why.
    absent: Vec<(String, String)>,
    /// Disks that something is being made of.
    claimed: BTreeSet<String>,
    /// Disks of arrays that were stopped or do without them, which had not ended what was asked of them, and
    /// whether that is still so.
    unended: Vec<(String, Box<dyn Fn() -> bool>)>,
    /// The arrays that are being made.
    pub making: Vec<Arc<Making>>,
    /// An array is being assembled.
    pub is_assembling: bool,
    /// Arrays that were made while the appliance ran, and have been stopped since this start, by name.
    pub stopped: BTreeMap<String, Stopped>,
    /// The memory for more arrays.
    pub reserve: Reserve,
    drives: Drives,
}

/// What makes a configured disk the same disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DiskKey {
    name: String,
    kind: DiskKind,
    block_size: Option<BlockSize>,
}

impl DiskKey {
    fn of(disk: &Disk) -> Self {
        let Disk {
            name,
            kind,
            block_size,
            ..
        } = disk;
        Self {
            name: name.clone(),
            kind: kind.clone(),
            block_size: *block_size,
        }
    }
}

impl Media {
    /// Opens the disks that are not open yet. Arrays may do without some.
    pub fn open(&mut self, appliance: &Appliance, state: &mut State) -> Result<(), Failure> {
        let listed = appliance
            .arrays()
            .iter()
            .flat_map(|array| array.members.iter().chain(&array.spares))
            .map(|disk| appliance.disk(*disk).name.clone());
        let since = appliance.arrays().iter();
        let since = since.flat_map(|array| {
            let spares = state.array_spares(&array.name).iter();
            state.array_disks(&array.name).iter().chain(spares).cloned()
        });
        let in_arrays: BTreeSet<String> = listed.chain(since).collect();
        let opened = self.open_others(appliance, &in_arrays, state);
        self.drives.let_go_unused();
        self.open.extend(opened?);
        Ok(())
    }

    /// All that are missing are named together; where one waits for its drive, the others' drives are
    /// brought up meanwhile.
    fn open_others(
        &mut self,
        appliance: &Appliance,
        in_arrays: &BTreeSet<String>,
        state: &mut State,
    ) -> Result<Vec<(DiskKey, PlainMedium)>, Failure> {
        let (mut opened, mut refused) = (Vec::new(), Vec::new());
        let mut missing = BTreeMap::new();
        let mut put_off = None;
        for disk in appliance.disks() {
            let key = DiskKey::of(disk);
            if self.open.iter().any(|(known, _)| *known == key) {
                continue;
            }
            match open_disk(disk, &mut self.drives, state) {
                Ok(medium) => opened.push((key, medium)),
                Err(failure) if self.drives.was_put_off() => put_off = Some(failure),
                Err(failure) if in_arrays.contains(disk.name.as_str()) => {
                    missing.insert(disk.name.clone(), failure);
                }
                Err(failure) => refused.push(failure),
            }
        }
        if let Some(failure) = put_off {
            self.drives.put_off();
            return Err(failure);
        }
        if let Some(failure) = Failure::all(refused) {
            return Err(failure);
        }
        for (name, failure) in missing {
            warn!("{failure}");
            self.missing.insert(name, failure.to_string());
        }
        Ok(opened)
    }

    /// Lets go of the disks that the configuration names no more.
    pub fn keep_only(&mut self, appliance: &Appliance) {
        let wanted: Vec<_> = appliance.disks().iter().map(DiskKey::of).collect();
        self.open.retain(|(key, _)| wanted.contains(key));
    }

    /// The arrays.
    pub fn arrays(&self) -> &[Arc<ArrayMedium>] {
        &self.arrays
    }

    /// An array was made.
    pub fn add_array(&mut self, array: Arc<ArrayMedium>) {
        self.absent.retain(|(name, _)| *name != array.name);
        self.arrays.push(array);
    }

    /// An array was closed.
    pub fn remove_array(&mut self, array: &Arc<ArrayMedium>) {
        self.arrays.retain(|known| !Arc::ptr_eq(known, array));
    }

    /// Arrays that cannot be had, and why.
    pub fn absent(&self) -> &[(String, String)] {
        &self.absent
    }

    /// Forgets an array that cannot be had; true where it was known.
    pub fn forget_absent(&mut self, name: &str) -> bool {
        let before = self.absent.len();
        self.absent.retain(|(known, _)| known != name);
        self.absent.len() < before
    }

    /// Disks, or a name, that something is being made of.
    pub fn claimed(&mut self) -> &mut BTreeSet<String> {
        &mut self.claimed
    }

    /// A disk is not used for anything else as long as `is_out` says that something asked of it has not ended.
    pub fn keep_from_use(&mut self, disk: String, is_out: impl Fn() -> bool + 'static) {
        self.unended.push((disk, Box::new(is_out)));
    }

    /// True where that is so.
    pub fn is_kept_from_use(&mut self, disk: &str) -> bool {
        self.unended.retain(|(_, is_out)| is_out());
        self.unended.iter().any(|(known, _)| known == disk)
    }

    /// The disk of this name, opened now where it could not be opened before.
    pub fn disk(
        &mut self,
        appliance: &Appliance,
        name: &str,
        state: &mut State,
    ) -> Result<PlainMedium, Failure> {
        let disk = appliance.disks().iter().find(|disk| disk.name == name);
        let disk = disk.ok_or_else(|| {
            Failure::new(
                format!("there is no disk named \"{name}\""),
                "add a [[disk]] of this name to the configuration, and reload it (SIGHUP)",
            )
        })?;
        if let Some(medium) = self.plain(disk) {
            return Ok(medium);
        }
        let opened = open_disk(disk, &mut self.drives, state);
        self.drives.let_go_unused();
        let medium = opened?;
        self.missing.remove(name);
        self.open.push((DiskKey::of(disk), medium.clone()));
        Ok(medium)
    }

    fn plain(&self, disk: &Disk) -> Option<PlainMedium> {
        let key = DiskKey::of(disk);
        let known = self.open.iter().find(|(known, _)| *known == key);
        known.map(|(_, medium)| medium.clone())
    }

    /// The array of this name.
    pub fn array(&self, name: &str) -> Option<&Arc<ArrayMedium>> {
        self.arrays.iter().find(|array| array.name == name)
    }

    /// A disk or an array, where it is open; not a volume, which only its pool's home core knows.
    pub fn medium(&self, appliance: &Appliance, store: Store) -> Option<Medium> {
        match store {
            Store::Disk(disk) => self.plain(appliance.disk(disk)).map(Medium::Plain),
            Store::Array(array) => {
                let known = self.array(&appliance.array(array).name);
                known.cloned().map(Medium::Array)
            }
            Store::Volume(_) => None,
        }
    }

    /// From now on the return of drives that are lost is told.
    pub fn watch_drives(&mut self, events: mpsc::Sender<Event>) {
        self.drives.watch(events);
    }

    /// The drives, to be looked at.
    pub fn all_drives(&self) -> &Drives {
        &self.drives
    }

    /// The drives.
    pub fn drives(&mut self) -> &mut Drives {
        &mut self.drives
    }

    /// A drive that was lost is there again: its disks lie on it from now on, as far as their
    /// namespaces are what they were. Gives their names.
    pub fn take_back(&mut self, returned: &Returned) -> Vec<String> {
        self.drives.has_returned(returned);
        let Returned { lost, up } = returned;
        let back = self.take_again(|was, _| Arc::ptr_eq(&was.drive, lost).then(|| up.clone()));
        if back.is_empty() {
            self.drives.refuse(up);
        }
        back
    }

    /// The names of the disks on a drive.
    pub fn on_drive(&self, drive: &Arc<Drive<VfioRegisters>>) -> Vec<String> {
        let is_on_it = |medium: &PlainMedium| match medium {
            PlainMedium::Nvme(medium) => Arc::ptr_eq(&medium.drive, drive),
            _ => false,
        };
        let on_it = self.open.iter().filter(|(_, medium)| is_on_it(medium));
        on_it.map(|(key, _)| key.name.clone()).collect()
    }

    /// Namespaces of drives have changed: disks whose namespaces are what they were again lie on them
    /// from now on. Gives their names.
    pub fn look_again(&mut self) -> Vec<String> {
        self.take_again(|was, drives| {
            let may = was.may_be_again();
            may.then(|| drives.at(was.drive.address())).flatten()
        })
    }

    fn take_again(&mut self, on: impl Fn(&NvmeMedium, &Drives) -> Option<Up>) -> Vec<String> {
        let mut back = Vec::new();
        for (key, medium) in &mut self.open {
            let PlainMedium::Nvme(was) = &*medium else {
                continue;
            };
            let Some(up) = on(was, &self.drives) else {
                continue;
            };
            let now = was.again(&up);
            match &now {
                Ok(_) => back.push(key.name.clone()),
                Err(why) => warn!("disk \"{}\": its drive is there again, but {why}", key.name),
            }
            let now = now.unwrap_or_else(|_| was.still_lost(&up));
            *medium = PlainMedium::Nvme(Arc::new(now));
        }
        back
    }

    /// Members that their arrays had to do without are taken back, and brought up to date.
    pub fn return_members(&self, names: &[String]) {
        for array in &self.arrays {
            let back = self
                .open
                .iter()
                .filter(|(key, _)| names.contains(&key.name));
            for (key, medium) in back {
                let (name, medium) = (key.name.clone(), medium.clone());
                array.take_back_spare(&Named { name, medium });
            }
            for (role, member) in array.members().into_iter().enumerate() {
                let Some(name) = member.map(|member| member.name) else {
                    continue;
                };
                let known = self.open.iter().find(|(key, _)| key.name == name);
                if let Some((_, medium)) = known.filter(|_| names.contains(&name)) {
                    let medium = medium.clone();
                    array.take_back(role, Named { name, medium });
                }
            }
        }
    }

    /// Shuts the drives down; every core has ended. False where one was not.
    pub fn end(&mut self) -> bool {
        self.drives.end()
    }

    /// What a configured namespace comes to; `None` for a volume, and for what is not open.
    pub fn spec(
        &self,
        appliance: &Appliance,
        subsystem: &Subsystem,
        namespace: &Namespace,
        state: &mut State,
    ) -> Option<Arc<NamespaceSpec<Medium>>> {
        if let Store::Volume(_) = namespace.store {
            return None;
        }
        let name = appliance.store_name(namespace.store);
        let Some(medium) = self.medium(appliance, namespace.store) else {
            let nqn = &subsystem.nqn;
            error!(subsystem = %nqn, nsid = namespace.nsid, "\"{name}\" is not open");
            return None;
        };
        Some(Arc::new(NamespaceSpec {
            nsid: namespace.nsid,
            identity: identity(subsystem, namespace, name, state),
            info: medium.info(),
            medium,
            read_only: namespace.read_only,
            live: None,
        }))
    }
}

/// Opens all disks, and makes the subsystems.
pub fn open(
    appliance: &Appliance,
    drives: Drives,
    (memory, pool_memory): (ArrayMemory, PoolMemory),
    state: &mut State,
) -> Result<Exports, Failure> {
    let mut media = Media {
        open: Vec::new(),
        missing: BTreeMap::new(),
        arrays: Vec::new(),
        pools: PoolBook::default(),
        absent: Vec::new(),
        claimed: BTreeSet::new(),
        unended: Vec::new(),
        making: Vec::new(),
        is_assembling: false,
        stopped: BTreeMap::new(),
        reserve: Reserve::default(),
        drives,
    };
    while let Err(failure) = media.open(appliance, state) {
        if !media.drives.was_put_off() {
            return Err(failure);
        }
        // Nobody is served yet.
        media.drives.wait();
    }
    media.drives.all_told();
    let opened = arrays::open(appliance, memory, state, |disk| {
        media.plain(appliance.disk(disk))
    })?;
    (media.arrays, media.absent, media.reserve) = (opened.arrays, opened.absent, opened.reserve);
    for array in &media.arrays {
        kept::begin(array, state);
    }
    let registry = Registry::default();
    registry.set_health(state.health());
    let mut namespaces = Vec::new();
    for configured in appliance.subsystems() {
        let subsystem = add_subsystem(&registry, configured, state);
        for namespace in &configured.namespaces {
            if let Some(spec) = media.spec(appliance, configured, namespace, state) {
                subsystem.add_namespace(spec.clone());
                namespaces.push((subsystem.id, spec));
            }
        }
    }
    let pools = AtStart {
        memory: pool_memory,
        openings: pools::openings(appliance, &media, state),
        book: media.pools.clone(),
        owner: state.owner(),
    };
    Ok(Exports {
        pools: Some(pools),
        registry: Arc::new(registry),
        namespaces,
        media,
    })
}

/// Makes a configured subsystem, without its namespaces.
pub fn add_subsystem(
    registry: &Registry<Medium>,
    configured: &Subsystem,
    state: &State,
) -> Arc<corebay_target::subsystem::Subsystem<Medium>> {
    let names = SubsystemNames {
        nqn: configured.nqn.clone(),
        serial: configured.serial.as_str().to_owned(),
        model: configured.model.as_str().to_owned(),
    };
    let subsystem = registry.add_subsystem(names, access(configured), Some(ports(configured)));
    state.restore(&subsystem);
    subsystem
}

/// The ports that a subsystem is served at.
pub fn ports(configured: &Subsystem) -> BTreeSet<u16> {
    let listeners = configured.listeners.iter();
    listeners
        .map(|listener| port_id(listener.index()))
        .collect()
}

/// The port identifier of a listener: its place in the configuration, from 1.
pub fn port_id(index: usize) -> u16 {
    u16::try_from(index + 1).unwrap_or(u16::MAX)
}

/// Who may connect.
pub fn access(subsystem: &Subsystem) -> Access {
    match &subsystem.access {
        ConfiguredAccess::AnyHost => Access::Any,
        ConfiguredAccess::Hosts(hosts) => Access::Hosts(hosts.iter().cloned().collect()),
    }
}

fn identity(
    subsystem: &Subsystem,
    namespace: &Namespace,
    name: &str,
    state: &mut State,
) -> Identity {
    let uuid = namespace
        .uuid
        .unwrap_or_else(|| state.namespace_uuid(&subsystem.nqn, name));
    // Unless one is given, the NGUID holds the same 128 bits: hosts that know only one of the two
    // still recognise the namespace.
    let nguid = namespace
        .nguid
        .map_or(*uuid.as_bytes(), |nguid| nguid.bytes());
    let eui64 = namespace.eui64.map_or([0; 8], |eui64| eui64.bytes());
    Identity {
        uuid: *uuid.as_bytes(),
        nguid,
        eui64,
    }
}

fn open_disk(disk: &Disk, drives: &mut Drives, state: &mut State) -> Result<PlainMedium, Failure> {
    let block_size = disk.block_size.unwrap_or(BlockSize::B4096);
    match &disk.kind {
        DiskKind::File { path, size, create } => {
            let options = FileMediumOptions {
                block_size,
                bytes: size.map(|size| size.bytes()),
                create: *create,
                caching: Caching::Direct,
            };
            let medium = open_file(disk, path, options, state)?;
            state.note_block_size(path, medium.info().block_size);
            Ok(PlainMedium::File(medium))
        }
        DiskKind::Device { path } => {
            let block_size = match disk.block_size {
                Some(block_size) => block_size,
                None => own_block_size(disk, path)?,
            };
            let medium = FileMedium::open(path, FileMediumOptions::new(block_size))
                .map_err(|error| cannot_open(disk, &error))?;
            say_if_blocks_tear(disk, path, &medium);
            Ok(PlainMedium::File(medium))
        }
        DiskKind::Ram { size } => {
            let blocks = block_size.blocks_in(size.bytes());
            RamMedium::new(block_size, blocks)
                .map(PlainMedium::Ram)
                .map_err(|error| {
                    Failure::new(
                        format!(
                            "disk \"{}\": no {size} of address space: {error}",
                            disk.name
                        ),
                        "make the disk smaller",
                    )
                })
        }
        DiskKind::Nvme { drive, nsid } => {
            let medium = drives
                .open(drive, *nsid)
                .map_err(|failure| failure.of(&format!("disk \"{}\"", disk.name)))?;
            let own = medium.info().block_size;
            match disk.block_size.filter(|wanted| *wanted != own) {
                None => {
                    drives.keep(&medium);
                    Ok(PlainMedium::Nvme(Arc::new(medium)))
                }
                Some(wanted) => Err(Failure::new(
                    format!(
                        "disk \"{}\": its blocks are {own} bytes, not {wanted}",
                        disk.name
                    ),
                    "leave `block_size` out, or format the namespace with such blocks",
                )),
            }
        }
        DiskKind::Null { size } => Ok(PlainMedium::Null(
            block_size,
            block_size.blocks_in(size.bytes()),
        )),
    }
}

/// Opens a file. Where no block size is said, it is what hosts know the file by, or for a new one
/// what its medium keeps whole when the power fails.
fn open_file(
    disk: &Disk,
    path: &Path,
    options: FileMediumOptions,
    state: &State,
) -> Result<Arc<FileMedium>, Failure> {
    let with = |block_size| {
        FileMedium::open(
            path,
            FileMediumOptions {
                block_size,
                ..options
            },
        )
    };
    let known = || state.block_size(path).filter(|_| path.exists());
    let opened = match disk.block_size.or_else(known) {
        Some(block_size) => with(block_size),
        None => match with(default_block_size(path)) {
            // Nothing is known of the medium but that it knows no smaller blocks.
            Err(error) if matches!(error.reason, FileErrorReason::UnitTooLarge { .. }) => {
                with(BlockSize::B4096)
            }
            opened => opened,
        },
    };
    let medium = opened.map_err(|error| cannot_open(disk, &error))?;
    say_if_blocks_tear(disk, path, &medium);
    Ok(medium)
}

fn cannot_open(disk: &Disk, error: &FileError) -> Failure {
    Failure::new(format!("disk \"{}\": {error}", disk.name), String::new())
}

/// NVMe has no way to say that less than a block is atomic (AWUPF), so it is said here.
fn say_if_blocks_tear(disk: &Disk, path: &Path, medium: &FileMedium) {
    let info = medium.info();
    if !info.may_tear_blocks() {
        return;
    }
    let (block, whole) = (info.block_size.bytes(), info.atomic_write_bytes);
    warn!(
        "disk \"{}\": if the power fails while a block of {block} bytes is written, the block may be \
         left half old and half new: all that is known of {} is that it writes {whole} bytes as a \
         whole. Hosts that rely on whole blocks need blocks of {whole} bytes (block={whole}, or \
         block_size = {whole} in a file; it changes what hosts see, so begin with an empty disk), \
         or a medium with physical sectors of {block} bytes",
        disk.name,
        path.display()
    );
}

/// The block size that a kernel block device itself has.
fn own_block_size(disk: &Disk, path: &Path) -> Result<BlockSize, Failure> {
    let bytes = match LocalMachine.path(path) {
        PathState::BlockDevice { block_size, .. } => u64::from(block_size),
        _ => 0,
    };
    BlockSize::from_bytes(bytes).ok_or_else(|| {
        Failure::new(
            format!(
                "disk \"{}\": {} has blocks of {bytes} bytes",
                disk.name,
                path.display()
            ),
            "only blocks of 512 and 4096 bytes can be exported; format the device with one of them",
        )
    })
}

/// True where a namespace names the array.
pub fn is_exported(appliance: &Appliance, name: &str) -> bool {
    let subsystems = appliance.subsystems().iter();
    subsystems
        .flat_map(|subsystem| &subsystem.namespaces)
        .any(|namespace| match namespace.store {
            Store::Array(id) => appliance.array(id).name == name,
            _ => false,
        })
}
