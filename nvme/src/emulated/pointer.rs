//! Data pointers, followed as a controller does: PRP entries and lists, SGL segments.

use super::memory::{Memory, Unmapped};
use crate::spec::{
    command::{Psdt, SubmissionEntry},
    sgl::{self, SglDescriptor},
    status::Status,
};

const PAGE: u64 = 4096;

/// The longest chain of SGL segments that is followed.
const SEGMENTS_MAX: usize = 16;

/// A stretch of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) address: u64,
    pub(super) bytes: usize,
}

/// Where `bytes` of a command's data lie.
pub(super) fn stretches(
    entry: &SubmissionEntry,
    bytes: usize,
    memory: &Memory,
    sgl: bool,
) -> Result<Vec<Stretch>, Status> {
    if bytes == 0 {
        return Ok(Vec::new());
    }
    match entry.psdt() {
        Psdt::Prp => prp(entry, bytes, memory),
        Psdt::Sgl if sgl => follow_sgl(entry, bytes, memory),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

fn prp(entry: &SubmissionEntry, bytes: usize, memory: &Memory) -> Result<Vec<Stretch>, Status> {
    let [first, second] = entry.prp();
    if !first.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET_INVALID.with_dnr());
    }
    let in_first = ((PAGE - first % PAGE) as usize).min(bytes);
    let mut found = vec![Stretch {
        address: first,
        bytes: in_first,
    }];
    let mut left = bytes - in_first;
    if left == 0 {
        return Ok(found);
    }
    if left <= PAGE as usize {
        push_page(&mut found, second, left)?;
        return Ok(found);
    }
    let mut list = second;
    if !list.is_multiple_of(8) {
        return Err(Status::PRP_OFFSET_INVALID.with_dnr());
    }
    while left > 0 {
        let is_last_of_page = list % PAGE == PAGE - 8;
        let value = memory.load_u64(list).map_err(fault)?;
        if is_last_of_page && left > PAGE as usize {
            if !value.is_multiple_of(PAGE) {
                return Err(Status::PRP_OFFSET_INVALID.with_dnr());
            }
            list = value;
            continue;
        }
        let here = left.min(PAGE as usize);
        push_page(&mut found, value, here)?;
        left -= here;
        list += 8;
    }
    Ok(found)
}

fn push_page(found: &mut Vec<Stretch>, address: u64, bytes: usize) -> Result<(), Status> {
    if !address.is_multiple_of(PAGE) {
        return Err(Status::PRP_OFFSET_INVALID.with_dnr());
    }
    found.push(Stretch { address, bytes });
    Ok(())
}

fn follow_sgl(
    entry: &SubmissionEntry,
    bytes: usize,
    memory: &Memory,
) -> Result<Vec<Stretch>, Status> {
    let mut found = Vec::new();
    let mut left = bytes;
    let mut descriptors = vec![entry.sgl()];
    for _ in 0..SEGMENTS_MAX {
        let mut next = None;
        let count = descriptors.len();
        for (index, descriptor) in descriptors.iter().enumerate() {
            let (address, len) = (descriptor.address.get(), descriptor.length.get() as usize);
            match descriptor.identifier {
                sgl::DATA_BLOCK => {
                    let here = len.min(left);
                    found.push(Stretch {
                        address,
                        bytes: here,
                    });
                    left -= here;
                }
                sgl::SEGMENT | sgl::LAST_SEGMENT if index + 1 == count => {
                    next = Some((address, len));
                }
                sgl::SEGMENT | sgl::LAST_SEGMENT => {
                    return Err(Status::INVALID_SGL_SEGMENT.with_dnr());
                }
                _ => return Err(Status::SGL_TYPE_INVALID.with_dnr()),
            }
        }
        let Some((address, len)) = next else {
            return match left {
                0 => Ok(found),
                _ => Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()),
            };
        };
        if len == 0 || !len.is_multiple_of(16) || len > PAGE as usize {
            return Err(Status::INVALID_SGL_SEGMENT.with_dnr());
        }
        descriptors = segment(address, len / 16, memory)?;
    }
    Err(Status::INVALID_SGL_COUNT.with_dnr())
}

fn segment(address: u64, count: usize, memory: &Memory) -> Result<Vec<SglDescriptor>, Status> {
    (0..count as u64)
        .map(|index| {
            let at = address + index * 16;
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&memory.load_u64(at).map_err(fault)?.to_le_bytes());
            bytes[8..].copy_from_slice(&memory.load_u64(at + 8).map_err(fault)?.to_le_bytes());
            Ok(SglDescriptor::from_bytes(bytes))
        })
        .collect()
}

pub(super) fn fault(_: Unmapped) -> Status {
    Status::DATA_TRANSFER_ERROR
}
