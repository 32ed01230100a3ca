//! What a controller and its namespaces say of themselves, parsed once from what Identify gave.
//!
//! Invariant: whatever the bytes were, what is here is in range: sizes are not zero and fit, block
//! sizes exist, limits are at least one block.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use corebay_core::{
    disk::{DiskInfo, TRANSFER_BYTES_MAX},
    units::BlockSize,
};

use super::{pointer::PAGE_BYTES, shared::METADATA_BYTES};
use crate::spec::{
    ascii,
    command::nvm::BLOCKS_MAX,
    identify::{
        IdentifyController, IdentifyControllerNvm, IdentifyNamespace, NamespaceIdentifier,
        controller::{ctratt, oacs, oncs, sgls, vwc},
        csi,
        namespace::{flbas, nsfeat},
    },
    property::Vs,
};

/// A controller, as it described itself at bring-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Model number.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
    /// PCI vendor ID.
    pub vendor: u16,
    /// Controller ID.
    pub cntlid: u16,
    /// The version that it complies with.
    pub version: Vs,
    /// The most bytes of one command's data.
    pub transfer_bytes_max: usize,
    /// It has a volatile write cache, and that is enabled.
    pub volatile_cache: bool,
    /// It takes SGLs.
    pub sgl: bool,
    /// Optional NVM command support, see [`oncs`](crate::spec::identify::controller::oncs).
    pub oncs: u16,
    /// RTD3 Entry Latency in microseconds; 0 where it is not stated.
    pub(super) rtd3e: u32,
    pub(super) doorbell_buffer: bool,
    pub(super) host_id_128: bool,
    pub(super) oaes: u32,
    /// The commands of a queue that the controller would have taken at a time, as a power of two.
    pub(super) arbitration_burst: u8,
    pub(super) command_limits: CommandLimits,
}

/// The most bytes, or blocks, of commands without data; `None` for no limit but the command's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CommandLimits {
    pub(super) verify_bytes: Option<u64>,
    pub(super) zeroes_bytes: Option<u64>,
    pub(super) uncorrectable_bytes: Option<u64>,
    pub(super) deallocate_blocks: Option<u64>,
}

/// Bytes from a power of two of pages, as MDTS has it; 0 and what nobody reaches are no limit.
fn page_power(exponent: u8) -> Option<u64> {
    let limited = exponent > 0 && exponent < 40;
    limited.then(|| (PAGE_BYTES as u64) << exponent)
}

impl ControllerInfo {
    pub(super) fn parse(identify: &IdentifyController, version: Vs) -> Self {
        let text = |field: &[u8]| ascii::trim(field);
        let transfer = page_power(identify.mdts).unwrap_or(u64::MAX);
        let transfer_bytes_max = transfer.min(TRANSFER_BYTES_MAX as u64) as usize;
        let sgl_support = identify.sgls.get() & sgls::SUPPORT_MASK;
        // Where the controller says nothing of commands without data, their limit is that of data.
        let unsaid = page_power(identify.mdts);
        Self {
            model: text(&identify.mn),
            serial: text(&identify.sn),
            firmware: text(&identify.fr),
            vendor: identify.vid.get(),
            cntlid: identify.cntlid.get(),
            version,
            transfer_bytes_max,
            volatile_cache: identify.vwc & vwc::PRESENT != 0,
            sgl: matches!(sgl_support, sgls::SUPPORTED | sgls::SUPPORTED_DWORD),
            oncs: identify.oncs.get(),
            rtd3e: identify.rtd3e.get(),
            doorbell_buffer: identify.oacs.get() & oacs::DOORBELL_BUFFER != 0,
            host_id_128: identify.ctratt.get() & ctratt::HOST_ID_128 != 0,
            oaes: identify.oaes.get(),
            arbitration_burst: identify.rab.min(ARBITRATION_UNLIMITED),
            command_limits: CommandLimits {
                verify_bytes: unsaid,
                zeroes_bytes: unsaid,
                uncorrectable_bytes: unsaid,
                deallocate_blocks: None,
            },
        }
    }

    /// Takes the limits that the NVM command set's own structure states.
    pub(super) fn set_limits(&mut self, nvm: &IdentifyControllerNvm) {
        let blocks = |value: u64| (value > 0).then_some(value);
        let per_range = blocks(u64::from(nvm.dmrsl.get()));
        let per_command = blocks(nvm.dmsl.get());
        self.command_limits = CommandLimits {
            verify_bytes: page_power(nvm.vsl),
            zeroes_bytes: page_power(nvm.wzsl),
            uncorrectable_bytes: page_power(nvm.wusl),
            deallocate_blocks: per_range.into_iter().chain(per_command).min(),
        };
    }

    /// True where commands that were made for a controller like `before` do the same here: it is the same
    /// one, and all that they were cut and marked by is as it was.
    pub(super) fn works_as(&self, before: &Self) -> bool {
        (self.serial == before.serial && self.model == before.model)
            // Without the cache that there is now, nothing would be flushed or forced.
            && self.volatile_cache == before.volatile_cache
            && self.transfer_bytes_max == before.transfer_bytes_max
            && self.command_limits == before.command_limits
            && self.sgl == before.sgl
            && self.doorbell_buffer == before.doorbell_buffer
    }

    /// True where the optional command behind this bit of [`oncs`] is supported.
    #[must_use]
    pub fn supports(&self, bit: u16) -> bool {
        self.oncs & bit != 0
    }
}

/// The arbitration burst that has no limit (Base, section 5.1.25.1.1).
const ARBITRATION_UNLIMITED: u8 = 7;

/// Why a namespace cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has no blocks, or more than can be addressed.
    Size(u64),
    /// Its blocks are neither 512 nor 4096 bytes; log2 of their size.
    BlockSize(u8),
    /// It is formatted with metadata.
    Metadata {
        /// Metadata bytes of each block.
        bytes: u16,
        /// They are part of the block as it is transferred.
        extended: bool,
    },
    /// It is formatted with protection information.
    Protection,
    /// It is of another command set, such as zoned namespaces.
    CommandSet(u8),
    /// One block is more than a command of this controller may transfer.
    TransferTooSmall,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(0) => write!(f, "it has no blocks"),
            Self::Size(blocks) => write!(f, "{blocks} blocks cannot be addressed"),
            Self::BlockSize(shift) => write!(
                f,
                "its blocks are 2^{shift} bytes; format it with blocks of 512 or 4096 bytes"
            ),
            Self::Metadata { bytes, extended } => write!(
                f,
                "it is formatted with {bytes} bytes of metadata per block{}; format it without, or with \
                 at most {METADATA_MAX} bytes in a separate buffer",
                if *extended { ", within the block" } else { "" }
            ),
            Self::Protection => write!(
                f,
                "it is formatted with protection information; format it without (`nvme format --pi=0`)"
            ),
            Self::CommandSet(csi) => write!(
                f,
                "it is of I/O command set {csi:#x}, only the NVM command set (0x0) is supported"
            ),
            Self::TransferTooSmall => write!(f, "the controller cannot transfer one of its blocks"),
        }
    }
}

/// A namespace that the driver serves.
#[derive(Debug)]
pub struct NamespaceInfo {
    /// Its identifier.
    pub nsid: u32,
    /// The size of its blocks.
    pub block_size: BlockSize,
    /// IEEE extended unique identifier, or zeroes.
    pub eui64: [u8; 8],
    /// Namespace globally unique identifier, or zeroes.
    pub nguid: [u8; 16],
    /// UUID, or zeroes.
    pub uuid: [u8; 16],
    pub(super) volatile_cache: bool,
    pub(super) clearing: Clearing,
    pub(super) uncorrectable: bool,
    pub(super) limits: BlockLimits,
    /// Metadata bytes of each block, in a buffer of their own.
    metadata_bytes: u16,
    granularity: Option<u32>,
    blocks: AtomicU64,
    /// False once it was detached, for good: what is attached later is another one, which may be the same.
    attached: AtomicBool,
    /// A command was told that it is not there.
    missed: AtomicBool,
    /// A write that may be in a volatile cache was acknowledged since the last flush.
    unflushed: AtomicBool,
}

/// How blocks are made zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clearing {
    /// By Write Zeroes, else by writing zeroes.
    pub(super) write_zeroes: bool,
    /// Write Zeroes may also deallocate.
    pub(super) deac: bool,
    /// Deallocating what holds zeroes leaves zeroes: Dataset Management is a hint that does no harm.
    pub(super) dsm: bool,
}

/// The most blocks of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockLimits {
    pub(super) transfer: u32,
    pub(super) verify: u32,
    pub(super) zeroes: u32,
    pub(super) uncorrectable: u32,
    pub(super) deallocate: u32,
}

/// DLFEAT bits 2:0: what deallocated blocks read as; 1 is zeroes.
const DLFEAT_READ_MASK: u8 = 0b111;
const DLFEAT_READ_ZEROES: u8 = 1;
/// DLFEAT bit 3: Write Zeroes takes DEAC.
const DLFEAT_DEAC: u8 = 1 << 3;

impl NamespaceInfo {
    pub(super) fn parse(
        nsid: u32,
        identify: &IdentifyNamespace,
        identifiers: impl Iterator<Item = NamespaceIdentifier>,
        controller: &ControllerInfo,
    ) -> Result<Self, Refusal> {
        let (mut eui64, mut nguid, mut uuid) = (identify.eui64, identify.nguid, [0; 16]);
        for identifier in identifiers {
            match identifier {
                NamespaceIdentifier::Eui64(id) => eui64 = id,
                NamespaceIdentifier::Nguid(id) => nguid = id,
                NamespaceIdentifier::Uuid(id) => uuid = id,
                NamespaceIdentifier::Csi(csi::NVM) => {}
                NamespaceIdentifier::Csi(other) => return Err(Refusal::CommandSet(other)),
            }
        }
        let (block_size, blocks, metadata) = format_of(identify)?;
        let blocks_of = |bytes: Option<u64>| {
            let blocks = bytes.map_or(u64::from(BLOCKS_MAX), |bytes| block_size.blocks_in(bytes));
            blocks.clamp(1, u64::from(BLOCKS_MAX)) as u32
        };
        if controller.transfer_bytes_max < block_size.bytes() {
            return Err(Refusal::TransferTooSmall);
        }
        let clearing = clearing(identify, controller);
        // As much metadata as there is room for.
        let described = METADATA_BYTES.checked_div(metadata.into());
        let described = described.map_or(BLOCKS_MAX, |blocks| blocks as u32);
        let limits = &controller.command_limits;
        let limits = BlockLimits {
            transfer: blocks_of(Some(controller.transfer_bytes_max as u64)).min(described),
            verify: blocks_of(limits.verify_bytes),
            zeroes: blocks_of(limits.zeroes_bytes),
            uncorrectable: blocks_of(limits.uncorrectable_bytes),
            deallocate: u32::try_from(limits.deallocate_blocks.unwrap_or(1 << 20))
                .unwrap_or(1 << 20)
                .max(1),
        };
        let optimal = identify.nsfeat & nsfeat::OPTIMAL_PERFORMANCE != 0;
        let preferred = if optimal {
            u32::from(identify.npdg.get()) + 1
        } else {
            1
        };
        Ok(Self {
            nsid,
            block_size,
            eui64,
            nguid,
            uuid,
            volatile_cache: controller.volatile_cache,
            clearing,
            uncorrectable: controller.supports(oncs::WRITE_UNCORRECTABLE),
            limits,
            metadata_bytes: metadata,
            granularity: (clearing.deac || clearing.dsm).then_some(preferred),
            blocks: AtomicU64::new(blocks),
            attached: AtomicBool::new(true),
            missed: AtomicBool::new(false),
            unflushed: AtomicBool::new(false),
        })
    }

    /// What the namespace is as a disk.
    #[must_use]
    pub fn disk_info(&self) -> DiskInfo {
        DiskInfo {
            block_size: self.block_size,
            blocks: self.blocks.load(Ordering::Relaxed),
            volatile_cache: self.volatile_cache,
            deallocate_granularity: self.granularity,
            write_uncorrectable: self.uncorrectable,
            // A controller never tears a block (AWUPF is at least one). What it keeps whole beyond
            // that may here be cut into several commands.
            atomic_write_bytes: self.block_size.bytes() as u32,
        }
    }

    /// False once the namespace was detached from the controller. One that is attached again is another
    /// [`NamespaceInfo`]: whoever uses it has to look whether it is what it was.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// Takes over what changed: `None` where the namespace is no longer attached. One that works in
    /// another way, or that was away, be it for a moment, counts as detached.
    pub(super) fn update(&self, now: Option<&Self>) {
        let was_there = self.is_attached() && !self.missed.load(Ordering::Relaxed);
        let still = now.filter(|now| {
            let works_alike = self.volatile_cache == now.volatile_cache
                && self.clearing == now.clearing
                && self.uncorrectable == now.uncorrectable
                && self.limits == now.limits
                && self.granularity == now.granularity;
            was_there && works_alike && self.differs(now).is_none()
        });
        if let Some(now) = still {
            self.blocks.store(now.disk_info().blocks, Ordering::Relaxed);
        }
        self.attached.store(still.is_some(), Ordering::Relaxed);
    }

    /// A command was told that there is no such namespace: whatever is seen of it later may have been away.
    pub(super) fn note_missed(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    /// Why `now` cannot be this namespace, with all that was written to it; `None` where it may be.
    #[must_use]
    pub fn differs(&self, now: &Self) -> Option<&'static str> {
        let names = |of: &Self| (of.eui64, of.nguid, of.uuid);
        let (before, after) = (self.disk_info(), now.disk_info());
        let is_unnamed = names(self) == ([0; 8], [0; 16], [0; 16]);
        if names(self) != names(now) {
            Some("has other names")
        } else if before.block_size != after.block_size || self.metadata_bytes != now.metadata_bytes
        {
            Some("was formatted anew")
        } else if after.blocks < before.blocks {
            Some("is smaller")
        } else if is_unnamed && !self.is_attached() && after.blocks != before.blocks {
            Some("has another size, and no name by which it could be known")
        } else {
            None
        }
    }

    /// Each block has metadata.
    pub(super) fn has_metadata(&self) -> bool {
        self.metadata_bytes > 0
    }

    /// True where a write that may still be in the drive's volatile cache was acknowledged, and no flush
    /// has ended since: where the drive loses its power, that write may be lost.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        self.unflushed.load(Ordering::SeqCst)
    }

    /// A write is about to be acknowledged that may be in the cache. Mostly a load of what all cores read.
    pub(super) fn note_cached(&self) {
        if self.volatile_cache && !self.unflushed.load(Ordering::SeqCst) {
            self.unflushed.store(true, Ordering::SeqCst);
        }
    }

    /// A flush begins, of all writes that were acknowledged; true where there are any. Where it fails,
    /// [`note_cached`](Self::note_cached) says so.
    pub(super) fn begin_flush(&self) -> bool {
        self.unflushed.swap(false, Ordering::SeqCst)
    }

    /// What is in the cache was written, or may be lost: the namespace counts as detached, and this one
    /// takes its place.
    pub(super) fn succeed(&self) -> Self {
        self.attached.store(false, Ordering::Relaxed);
        Self {
            blocks: AtomicU64::new(self.disk_info().blocks),
            attached: AtomicBool::new(true),
            missed: AtomicBool::new(false),
            unflushed: AtomicBool::new(self.has_unflushed()),
            ..*self
        }
    }
}

/// DPS bits 2:0: the type of protection information.
const DPS_TYPE_MASK: u8 = 0b111;

/// The most metadata bytes of a block.
const METADATA_MAX: usize = 64;

/// Block size, blocks, metadata bytes of a block.
fn format_of(identify: &IdentifyNamespace) -> Result<(BlockSize, u64, u16), Refusal> {
    let blocks = identify.nsze.get();
    if blocks == 0 {
        return Err(Refusal::Size(0));
    }
    let format = identify.formatted();
    let block_size = match format.lbads {
        9 => BlockSize::B512,
        12 => BlockSize::B4096,
        other => return Err(Refusal::BlockSize(other)),
    };
    let metadata = format.ms.get();
    let extended = identify.flbas & flbas::METADATA_EXTENDED != 0;
    if metadata > 0 && identify.dps & DPS_TYPE_MASK != 0 {
        return Err(Refusal::Protection);
    }
    // Metadata in a buffer of its own is nobody's: zeroes are written, what is read is dropped.
    if metadata > 0 && (extended || usize::from(metadata) > METADATA_MAX) {
        let bytes = metadata;
        return Err(Refusal::Metadata { bytes, extended });
    }
    if blocks > u64::MAX >> (block_size.shift() + 1) {
        return Err(Refusal::Size(blocks));
    }
    Ok((block_size, blocks, metadata))
}

fn clearing(identify: &IdentifyNamespace, controller: &ControllerInfo) -> Clearing {
    let write_zeroes = controller.supports(oncs::WRITE_ZEROES);
    let deac = write_zeroes && identify.dlfeat & DLFEAT_DEAC != 0;
    let reads_zeroes = identify.dlfeat & DLFEAT_READ_MASK == DLFEAT_READ_ZEROES;
    Clearing {
        write_zeroes,
        deac,
        dsm: !deac && reads_zeroes && controller.supports(oncs::DATASET_MANAGEMENT),
    }
}

/// A namespace of the controller, used or not.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its identifier.
    pub nsid: u32,
    /// What it is, or why it cannot be used.
    pub state: Result<std::sync::Arc<NamespaceInfo>, Refusal>,
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, little_endian::U16, little_endian::U64};

    use super::*;

    fn controller() -> ControllerInfo {
        let mut identify = IdentifyController::new_zeroed();
        identify.mdts = 5;
        identify.oncs = U16::new(oncs::WRITE_ZEROES | oncs::DATASET_MANAGEMENT);
        ControllerInfo::parse(&identify, Vs::V2_0)
    }

    fn parse(change: impl FnOnce(&mut IdentifyNamespace)) -> Result<NamespaceInfo, Refusal> {
        let mut identify = IdentifyNamespace::new_zeroed();
        identify.nsze = U64::new(1000);
        identify.lbaf[0].lbads = 9;
        change(&mut identify);
        NamespaceInfo::parse(1, &identify, std::iter::empty(), &controller())
    }

    #[test]
    fn a_plain_namespace() {
        let info = parse(|identify| identify.dlfeat = 0b1001).unwrap();
        assert_eq!(info.limits.transfer, 256);
        assert_eq!(info.limits.zeroes, 256);
        assert!(info.clearing.deac && !info.clearing.dsm);
        assert_eq!(info.disk_info().blocks, 1000);
    }

    #[test]
    fn deallocating_is_a_hint_only_where_it_leaves_zeroes() {
        assert!(parse(|identify| identify.dlfeat = 1).unwrap().clearing.dsm);
        let unsaid = parse(|identify| identify.dlfeat = 0).unwrap();
        assert!(!unsaid.clearing.dsm);
        assert_eq!(unsaid.disk_info().deallocate_granularity, None);
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let refused = |change: fn(&mut IdentifyNamespace)| parse(change).map(|_| ()).unwrap_err();
        assert_eq!(refused(|id| id.nsze = U64::new(0)), Refusal::Size(0));
        assert_eq!(
            refused(|id| id.nsze = U64::MAX_VALUE),
            Refusal::Size(u64::MAX)
        );
        assert_eq!(refused(|id| id.lbaf[0].lbads = 13), Refusal::BlockSize(13));
        let metadata = Refusal::Metadata {
            bytes: 8,
            extended: true,
        };
        assert_eq!(
            refused(|id| {
                id.lbaf[0].ms = U16::new(8);
                id.flbas = 0x10;
            }),
            metadata
        );
        assert!(metadata.to_string().contains("8 bytes of metadata"));
    }

    #[test]
    fn metadata_in_a_buffer_of_its_own_is_served() {
        let with = |bytes| move |id: &mut IdentifyNamespace| id.lbaf[0].ms = U16::new(bytes);
        let info = parse(with(64)).unwrap();
        assert!(info.has_metadata());
        assert_eq!(info.limits.transfer as usize, METADATA_BYTES / 64);
        assert!(parse(with(65)).is_err());
        let protected = parse(|id| {
            id.lbaf[0].ms = U16::new(8);
            id.dps = 1;
        });
        assert_eq!(protected.map(|_| ()), Err(Refusal::Protection));
    }

    #[test]
    fn hostile_sizes_are_limited() {
        let mut identify = IdentifyController::new_zeroed();
        for mdts in 0..=255 {
            identify.mdts = mdts;
            let most = ControllerInfo::parse(&identify, Vs::V2_0).transfer_bytes_max;
            assert!((PAGE_BYTES..=TRANSFER_BYTES_MAX).contains(&most));
        }
    }

    #[test]
    fn a_namespace_may_grow_but_not_shrink() {
        let info = parse(|_| {}).unwrap();
        let of_size = |blocks| parse(|identify| identify.nsze = U64::new(blocks)).unwrap();
        info.update(Some(&of_size(2000)));
        assert_eq!((info.disk_info().blocks, info.is_attached()), (2000, true));
        info.update(Some(&of_size(1999)));
        assert!(!info.is_attached());
    }

    #[test]
    fn what_was_away_is_another_one_that_may_be_the_same() {
        let plain = || parse(|_| {}).unwrap();
        let info = plain();
        info.update(None);
        assert!(!info.is_attached());
        info.update(Some(&plain()));
        assert!(!info.is_attached(), "whoever used it has to look");
        assert_eq!(info.differs(&plain()), None);
        let missed = plain();
        missed.note_missed();
        missed.update(Some(&plain()));
        assert!(!missed.is_attached(), "away between two looks");
    }

    #[test]
    fn what_came_back_different_is_not_taken_for_what_it_was() {
        let before = parse(|identify| identify.lbaf[0].ms = U16::new(8)).unwrap();
        before.update(None);
        let differs = |change: fn(&mut IdentifyNamespace)| {
            let now = parse(|identify| {
                identify.lbaf[0].ms = U16::new(8);
                change(identify);
            });
            before.differs(&now.unwrap())
        };
        assert_eq!(differs(|_| {}), None);
        assert_eq!(differs(|id| id.nguid = [7; 16]), Some("has other names"));
        let formatted = Some("was formatted anew");
        assert_eq!(differs(|id| id.lbaf[0].lbads = 12), formatted);
        assert_eq!(differs(|id| id.lbaf[0].ms = U16::new(0)), formatted);
        let smaller = |id: &mut IdentifyNamespace| id.nsze = U64::new(999);
        assert_eq!(differs(smaller), Some("is smaller"));
        let larger = |id: &mut IdentifyNamespace| id.nsze = U64::new(1001);
        assert!(differs(larger).is_some(), "it has no name");
        let named = |blocks| {
            parse(|identify| (identify.nguid, identify.nsze) = ([7; 16], U64::new(blocks))).unwrap()
        };
        let info = named(1000);
        info.update(None);
        assert_eq!(info.differs(&named(1001)), None, "grown while it was away");
    }

    #[test]
    fn a_namespace_that_works_in_another_way_counts_as_detached() {
        let info = parse(|_| {}).unwrap();
        info.update(Some(&parse(|_| {}).unwrap()));
        assert!(info.is_attached());
        info.update(Some(&parse(|identify| identify.dlfeat = 0b1001).unwrap()));
        assert!(!info.is_attached());
    }
}
