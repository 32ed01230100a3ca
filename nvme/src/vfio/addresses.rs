//! Device addresses: which ones the IOMMU allows, and which are handed out.

/// Where addresses begin to be handed out: a device address of 0 looks like none.
const FIRST: u64 = 1 << 21;

/// The alignment of what is handed out: a hugepage, so that the IOMMU needs few entries.
const ALIGN: u64 = 1 << 21;

/// VFIO_IOMMU_INFO_CAPS: the answer has capabilities.
const FLAG_CAPS: u32 = 1 << 1;

/// VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE.
const CAP_IOVA_RANGE: u16 = 1;

/// Bytes of a capability's header: id, version, offset of the next.
const CAP_HEADER: usize = 8;

/// The most capabilities that are followed.
const CAPS_MAX: usize = 32;

/// Addresses from the first to the last.
pub(super) type Range = (u64, u64);

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(field.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}

/// The ranges in an answer to VFIO_IOMMU_GET_INFO (`vfio_iommu_type1_info` and its capabilities);
/// `None` where the kernel tells none.
pub(super) fn ranges(info: &[u8]) -> Option<Vec<Range>> {
    if u32_at(info, 4)? & FLAG_CAPS == 0 {
        return None;
    }
    let mut at = u32_at(info, 16)? as usize;
    for _ in 0..CAPS_MAX {
        if at == 0 {
            return None;
        }
        let (id, next) = (u16_at(info, at)?, u32_at(info, at + 4)? as usize);
        if id == CAP_IOVA_RANGE {
            let count = u32_at(info, at + CAP_HEADER)? as usize;
            let first = at + CAP_HEADER + 8;
            let found = (0..count.min(info.len() / 16)).map_while(|index| {
                let at = first + index * 16;
                Some((u64_at(info, at)?, u64_at(info, at + 8)?))
            });
            return Some(found.collect());
        }
        at = next;
    }
    None
}

/// Addresses for `bytes` that lie in one of `allowed` and in none of `taken`.
pub(super) fn place(allowed: &[Range], taken: &[Range], bytes: u64) -> Option<u64> {
    let mut allowed = allowed.to_vec();
    allowed.sort_unstable();
    for (start, end) in allowed {
        let mut at = start.max(FIRST).checked_next_multiple_of(ALIGN)?;
        while let Some(last) = at.checked_add(bytes.max(1) - 1) {
            if last > end {
                break;
            }
            let overlap = taken.iter().find(|(from, to)| *from <= last && at <= *to);
            let Some((_, to)) = overlap else {
                return Some(at);
            };
            let Some(next) = to
                .checked_add(1)
                .and_then(|next| next.checked_next_multiple_of(ALIGN))
            else {
                break;
            };
            at = next;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What an x86 machine with 39 bits reports: a hole for message signalled interrupts.
    const X86: [Range; 2] = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];

    fn info(caps: &[u8]) -> Vec<u8> {
        let mut info = vec![0; 24];
        info[4..8].copy_from_slice(&3u32.to_le_bytes());
        info[16..20].copy_from_slice(&24u32.to_le_bytes());
        info.extend(caps);
        info
    }

    fn capability(id: u16, next: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn ranges_are_found_behind_other_capabilities() {
        let mut body = 2u64.to_le_bytes().to_vec();
        for (start, end) in X86 {
            body.extend(start.to_le_bytes());
            body.extend(end.to_le_bytes());
        }
        let mut caps = capability(3, 40, &[0; 8]);
        caps.extend(capability(1, 0, &body));
        assert_eq!(ranges(&info(&caps)), Some(X86.to_vec()));
    }

    #[test]
    fn what_is_cut_off_or_loops_is_no_panic() {
        assert_eq!(ranges(&[]), None);
        assert_eq!(ranges(&[0; 24]), None);
        assert_eq!(ranges(&info(&capability(9, 24, &[]))), None);
        let cut = capability(1, 0, &u64::MAX.to_le_bytes());
        assert_eq!(ranges(&info(&cut)), Some(vec![]));
        assert_eq!(ranges(&info(&capability(9, u32::MAX, &[]))), None);
    }

    #[test]
    fn memory_is_placed_around_the_hole() {
        assert_eq!(place(&X86, &[], MIB), Some(2 * MIB));
        let whole = 0xfee0_0000;
        assert_eq!(place(&X86, &[], whole), Some(0xff00_0000));
        let taken = [(2 * MIB, 2 * MIB + 100)];
        assert_eq!(place(&X86, &taken, MIB), Some(4 * MIB));
        assert_eq!(place(&X86, &[(0, 0xfedf_ffff)], MIB), Some(0xff00_0000));
        assert_eq!(place(&X86, &[], 1 << 39), None);
        assert_eq!(place(&X86, &[(0, u64::MAX)], 1), None);
        assert_eq!(place(&[], &[], 1), None);
    }
}
