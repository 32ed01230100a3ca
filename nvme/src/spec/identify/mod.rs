//! The Identify command's selectors, lists and data structures (Base 2.1 section 5.1.13).
//!
//! Every data structure is 4,096 bytes; the larger ones can be viewed in place over a transfer buffer through
//! zerocopy, so that filling one in needs no copy.

pub mod controller;
pub mod namespace;

pub use controller::{IdentifyController, PowerStateDescriptor};
pub use namespace::{
    IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNamespaceNvm,
    LbaFormat,
};

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of every Identify data structure, in bytes.
pub const IDENTIFY_BYTES: usize = 4096;

/// Controller or Namespace Structure: what Identify asks for (Base 2.1 section 5.1.13.1, CNS values).
pub mod cns {
    /// Identify Namespace of the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace ID list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptor list.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// NVM set list.
    pub const NVM_SETS: u8 = 0x04;
    /// I/O command set specific Identify Namespace.
    pub const CSI_NAMESPACE: u8 = 0x05;
    /// I/O command set specific Identify Controller.
    pub const CSI_CONTROLLER: u8 = 0x06;
    /// Active namespace ID list of an I/O command set.
    pub const CSI_ACTIVE_NAMESPACES: u8 = 0x07;
    /// I/O command set independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Identify Namespace of a user data format.
    pub const FORMAT_NAMESPACE: u8 = 0x09;
    /// I/O command set specific Identify Namespace of a user data format.
    pub const CSI_FORMAT_NAMESPACE: u8 = 0x0a;
    /// Allocated namespace ID list.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// Identify Namespace of an allocated namespace.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers that a namespace is attached to.
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    /// Controllers of the NVM subsystem.
    pub const CONTROLLERS: u8 = 0x13;
    /// Primary controller capabilities.
    pub const PRIMARY_CONTROLLER: u8 = 0x14;
    /// Secondary controller list.
    pub const SECONDARY_CONTROLLERS: u8 = 0x15;
    /// Namespace granularity list.
    pub const NAMESPACE_GRANULARITY: u8 = 0x16;
    /// UUID list.
    pub const UUIDS: u8 = 0x17;
    /// Domain list.
    pub const DOMAINS: u8 = 0x18;
    /// Endurance group list.
    pub const ENDURANCE_GROUPS: u8 = 0x19;
    /// Allocated namespace ID list of an I/O command set.
    pub const CSI_ALLOCATED_NAMESPACES: u8 = 0x1a;
    /// I/O command set specific Identify Namespace of an allocated namespace.
    pub const CSI_ALLOCATED_NAMESPACE: u8 = 0x1b;
    /// Identify I/O Command Set data structure.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// Command set identifiers (CSI).
pub mod csi {
    /// NVM command set.
    pub const NVM: u8 = 0x00;
    /// Key value command set.
    pub const KEY_VALUE: u8 = 0x01;
    /// Zoned namespace command set.
    pub const ZONED: u8 = 0x02;
    /// Subsystem local memory command set.
    pub const LOCAL_MEMORY: u8 = 0x03;
    /// Computational programs command set.
    pub const COMPUTATIONAL: u8 = 0x04;
}

/// Controller list, Base 2.1 section 4.6.1.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct ControllerList {
    /// Number of identifiers in the list.
    pub numids: U16,
    /// Controller identifiers, ascending.
    pub ids: [U16; ControllerList::CAPACITY],
}

const _: () = {
    assert!(size_of::<ControllerList>() == IDENTIFY_BYTES);
    assert!(offset_of!(ControllerList, ids) == 2);
};

impl ControllerList {
    /// The most identifiers a list holds.
    pub const CAPACITY: usize = 2047;

    /// Overwrites the list with the identifiers from `start` on, as many as fit.
    ///
    /// # Panics
    ///
    /// Where `ids` is not strictly ascending.
    pub fn fill(&mut self, start: u16, ids: impl IntoIterator<Item = u16>) {
        self.ids = [U16::ZERO; Self::CAPACITY];
        let mut before = None;
        let mut count: u16 = 0;
        for id in ids {
            assert!(before < Some(id), "controller identifiers not ascending");
            before = Some(id);
            if id < start {
                continue;
            }
            let Some(slot) = self.ids.get_mut(usize::from(count)) else {
                break;
            };
            *slot = U16::new(id);
            count += 1;
        }
        self.numids = U16::new(count);
    }

    /// The identifiers that the list states; a count past its capacity is cut to it.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ids
            .iter()
            .take(usize::from(self.numids.get()))
            .map(|id| id.get())
    }
}

/// Namespace list, Base 2.1 section 4.6.2: ascending identifiers, the unused end zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct NamespaceList {
    /// Namespace identifiers, ascending; 0 ends the list.
    pub nsids: [U32; NamespaceList::CAPACITY],
}

const _: () = assert!(size_of::<NamespaceList>() == IDENTIFY_BYTES);

impl NamespaceList {
    /// The most identifiers a list holds.
    pub const CAPACITY: usize = 1024;

    /// Overwrites the list with the identifiers greater than `after`, as many as fit.
    ///
    /// # Panics
    ///
    /// Where `nsids` is not strictly ascending.
    pub fn fill(&mut self, after: u32, nsids: impl IntoIterator<Item = u32>) {
        self.nsids = [U32::ZERO; Self::CAPACITY];
        let mut before = None;
        let mut slots = self.nsids.iter_mut();
        for nsid in nsids {
            assert!(before < Some(nsid), "namespace identifiers not ascending");
            before = Some(nsid);
            if nsid <= after {
                continue;
            }
            let Some(slot) = slots.next() else { break };
            *slot = U32::new(nsid);
        }
    }

    /// The identifiers before the first zero.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.nsids
            .iter()
            .map(|nsid| nsid.get())
            .take_while(|nsid| *nsid != 0)
    }
}

/// Identify I/O Command Set data structure (CNS 1Ch), Base 2.1 section 5.1.13.2: the combinations of command sets
/// that may be selected together, a bit for each CSI.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct CommandSetCombinations {
    /// I/O command set combinations; all zero ends the list.
    pub iocsc: [U64; 512],
}

const _: () = assert!(size_of::<CommandSetCombinations>() == IDENTIFY_BYTES);

impl CommandSetCombinations {
    /// Overwrites the structure with one combination: the NVM command set alone.
    pub fn fill_nvm_only(&mut self) {
        self.iocsc = [U64::ZERO; 512];
        self.iocsc[0] = U64::new(1 << csi::NVM);
    }
}

/// Namespace identifier types (NIDT) of a namespace identification descriptor.
pub mod nidt {
    /// IEEE extended unique identifier.
    pub const EUI64: u8 = 1;
    /// Namespace globally unique identifier.
    pub const NGUID: u8 = 2;
    /// Namespace UUID.
    pub const UUID: u8 = 3;
    /// Command set identifier.
    pub const CSI: u8 = 4;
}

/// What a namespace identification descriptor says, Base 2.1 section 5.1.13.2.3. Identifiers are big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceIdentifier {
    /// NIDT 1: IEEE extended unique identifier.
    Eui64([u8; 8]),
    /// NIDT 2: namespace globally unique identifier.
    Nguid([u8; 16]),
    /// NIDT 3: UUID.
    Uuid([u8; 16]),
    /// NIDT 4: command set identifier, see [`csi`].
    Csi(u8),
}

impl NamespaceIdentifier {
    /// The identifier of type `nidt` in `nid`; none where the type is unknown or the length is not the type's.
    fn parse(nidt: u8, nid: &[u8]) -> Option<Self> {
        Some(match nidt {
            nidt::EUI64 => Self::Eui64(nid.try_into().ok()?),
            nidt::NGUID => Self::Nguid(nid.try_into().ok()?),
            nidt::UUID => Self::Uuid(nid.try_into().ok()?),
            nidt::CSI => Self::Csi(<[u8; 1]>::try_from(nid).ok()?[0]),
            _ => return None,
        })
    }

    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::Eui64(nid) => (nidt::EUI64, nid),
            Self::Nguid(nid) => (nidt::NGUID, nid),
            Self::Uuid(nid) => (nidt::UUID, nid),
            Self::Csi(nid) => (nidt::CSI, core::slice::from_ref(nid)),
        }
    }
}

/// Length of a descriptor's header: NIDT, NIDL and two reserved bytes.
const DESCRIPTOR_HEADER_BYTES: usize = 4;

/// Overwrites `list` with the namespace identification descriptors (CNS 03h) of `identifiers`, the unused end zero,
/// and returns how many of them fit.
pub fn encode_descriptors(
    identifiers: &[NamespaceIdentifier],
    list: &mut [u8; IDENTIFY_BYTES],
) -> usize {
    list.fill(0);
    let mut rest = &mut list[..];
    for (count, identifier) in identifiers.iter().enumerate() {
        let (nidt, nid) = identifier.parts();
        let Some((descriptor, after)) =
            rest.split_at_mut_checked(DESCRIPTOR_HEADER_BYTES + nid.len())
        else {
            return count;
        };
        descriptor[0] = nidt;
        descriptor[1] = nid.len() as u8;
        descriptor[DESCRIPTOR_HEADER_BYTES..].copy_from_slice(nid);
        rest = after;
    }
    identifiers.len()
}

/// The identifiers in a namespace identification descriptor list (CNS 03h). Descriptors of an unknown type or of a
/// length that is not their type's are passed over; a descriptor that the list cuts off ends it.
pub fn decode_descriptors(list: &[u8]) -> DescriptorIter<'_> {
    DescriptorIter { rest: list }
}

/// Iterator over the identifiers of a descriptor list, see [`decode_descriptors`].
#[derive(Clone, Debug)]
pub struct DescriptorIter<'a> {
    rest: &'a [u8],
}

impl Iterator for DescriptorIter<'_> {
    type Item = NamespaceIdentifier;

    fn next(&mut self) -> Option<NamespaceIdentifier> {
        loop {
            let (header, body) = self.rest.split_at_checked(DESCRIPTOR_HEADER_BYTES)?;
            let (nidt, nidl) = (header[0], usize::from(header[1]));
            if nidl == 0 {
                self.rest = &[];
                return None;
            }
            let (nid, after) = body.split_at_checked(nidl)?;
            self.rest = after;
            if let Some(identifier) = NamespaceIdentifier::parse(nidt, nid) {
                return Some(identifier);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn controller_list_starts_at_the_identifier_asked_for() {
        let mut list = ControllerList::new_zeroed();
        list.fill(3, [1, 3, 7, 0x1234]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [3, 7, 0x1234]);
        assert_eq!(list.as_bytes()[..10], [3, 0, 3, 0, 7, 0, 0x34, 0x12, 0, 0]);
        list.fill(0, 0..4000);
        assert_eq!(list.iter().count(), ControllerList::CAPACITY);
        list.fill(9, [1]);
        assert!(list.as_bytes().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn controller_list_with_a_false_count_is_cut() {
        let mut list = ControllerList::new_zeroed();
        list.numids = U16::new(u16::MAX);
        assert_eq!(list.iter().count(), ControllerList::CAPACITY);
    }

    #[test]
    #[should_panic(expected = "not ascending")]
    fn controller_list_refuses_disorder() {
        ControllerList::new_zeroed().fill(0, [2, 1]);
    }

    #[test]
    fn namespace_list_starts_after_the_identifier_asked_for() {
        let mut list = NamespaceList::new_zeroed();
        list.fill(2, [1, 2, 5, 9]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [5, 9]);
        list.fill(0, 1..3000);
        assert_eq!(list.iter().count(), NamespaceList::CAPACITY);
        assert_eq!(list.iter().last(), Some(1024));
        list.fill(9, [9]);
        assert_eq!(list.iter().next(), None);
    }

    #[test]
    fn descriptors_come_back_as_encoded() {
        let identifiers = [
            NamespaceIdentifier::Eui64([1; 8]),
            NamespaceIdentifier::Nguid([2; 16]),
            NamespaceIdentifier::Uuid([3; 16]),
            NamespaceIdentifier::Csi(csi::NVM),
        ];
        let mut list = [0xff; IDENTIFY_BYTES];
        assert_eq!(encode_descriptors(&identifiers, &mut list), 4);
        assert_eq!(list[..5], [1, 8, 0, 0, 1]);
        assert_eq!(list[12..16], [2, 16, 0, 0]);
        assert_eq!(list[52..58], [4, 1, 0, 0, 0, 0]);
        assert_eq!(decode_descriptors(&list).collect::<Vec<_>>(), identifiers);
    }

    #[test]
    fn descriptors_that_do_not_fit_are_left_out() {
        let mut list = [0; IDENTIFY_BYTES];
        let fit = encode_descriptors(&[NamespaceIdentifier::Uuid([9; 16]); 300], &mut list);
        assert_eq!(fit, IDENTIFY_BYTES / 20);
        assert_eq!(decode_descriptors(&list).count(), fit);
    }

    #[test]
    fn strange_descriptors_are_passed_over() {
        let list = [
            9, 2, 0, 0, 5, 5, 1, 3, 0, 0, 1, 1, 1, 4, 1, 0, 0, 2, 3, 16, 0, 0, 1,
        ];
        assert_eq!(
            decode_descriptors(&list).collect::<Vec<_>>(),
            [NamespaceIdentifier::Csi(2)]
        );
        assert_eq!(decode_descriptors(&[]).count(), 0);
        assert_eq!(decode_descriptors(&[3, 16]).count(), 0);
    }
}
