//! The commands that make and unmake I/O queues of a controller on PCIe, and its doorbells in memory.

use zerocopy::little_endian::{U32, U64};

use super::{
    SubmissionEntry,
    admin::{
        CREATE_IO_COMPLETION_QUEUE, CREATE_IO_SUBMISSION_QUEUE, DELETE_IO_COMPLETION_QUEUE,
        DELETE_IO_SUBMISSION_QUEUE, DOORBELL_BUFFER_CONFIG,
    },
};

/// Create I/O Completion Queue (Base, section 5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateCompletionQueue {
    /// Queue Identifier.
    pub qid: u16,
    /// The queue's entries, at least 2 (QSIZE + 1).
    pub entries: u32,
    /// Physically Contiguous.
    pub pc: bool,
    /// Interrupts Enabled.
    pub ien: bool,
    /// Interrupt Vector.
    pub iv: u16,
    /// Where the queue lies (PRP Entry 1).
    pub address: u64,
}

/// Create I/O Submission Queue (Base, section 5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateSubmissionQueue {
    /// Queue Identifier.
    pub qid: u16,
    /// The queue's entries, at least 2 (QSIZE + 1).
    pub entries: u32,
    /// Physically Contiguous.
    pub pc: bool,
    /// Queue Priority, for weighted round robin.
    pub qprio: u8,
    /// Completion Queue Identifier.
    pub cqid: u16,
    /// Where the queue lies (PRP Entry 1).
    pub address: u64,
}

fn prp1(entry: &SubmissionEntry) -> u64 {
    let [low @ .., _, _, _, _, _, _, _, _] = entry.dptr;
    u64::from_le_bytes(low)
}

fn entries(cdw10: u32) -> u32 {
    (cdw10 >> 16) + 1
}

fn queue_dword(qid: u16, entries: u32) -> U32 {
    U32::new(u32::from(qid) | entries.saturating_sub(1) << 16)
}

impl SubmissionEntry {
    /// Sets the data pointer to two PRP entries (Base, section 4.1.1), and says so in PSDT.
    pub fn set_prp(&mut self, prp1: u64, prp2: u64) {
        self.dptr[..8].copy_from_slice(&prp1.to_le_bytes());
        self.dptr[8..].copy_from_slice(&prp2.to_le_bytes());
        self.flags &= 0x3F;
    }

    /// The data pointer as two PRP entries.
    #[must_use]
    pub fn prp(&self) -> [u64; 2] {
        let [low, high]: [U64; 2] = zerocopy::transmute!(self.dptr);
        [low.get(), high.get()]
    }
}

impl From<&SubmissionEntry> for CreateCompletionQueue {
    fn from(entry: &SubmissionEntry) -> Self {
        let (cdw10, cdw11) = (entry.cdw10.get(), entry.cdw11.get());
        Self {
            qid: cdw10 as u16,
            entries: entries(cdw10),
            pc: cdw11 & 1 != 0,
            ien: cdw11 & 2 != 0,
            iv: (cdw11 >> 16) as u16,
            address: prp1(entry),
        }
    }
}

impl CreateCompletionQueue {
    /// The command that has these fields.
    #[must_use]
    pub fn to_entry(self) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(CREATE_IO_COMPLETION_QUEUE, 0);
        entry.cdw10 = queue_dword(self.qid, self.entries);
        entry.cdw11 =
            U32::new(u32::from(self.pc) | u32::from(self.ien) << 1 | u32::from(self.iv) << 16);
        entry.set_prp(self.address, 0);
        entry
    }
}

impl From<&SubmissionEntry> for CreateSubmissionQueue {
    fn from(entry: &SubmissionEntry) -> Self {
        let (cdw10, cdw11) = (entry.cdw10.get(), entry.cdw11.get());
        Self {
            qid: cdw10 as u16,
            entries: entries(cdw10),
            pc: cdw11 & 1 != 0,
            qprio: (cdw11 >> 1) as u8 & 3,
            cqid: (cdw11 >> 16) as u16,
            address: prp1(entry),
        }
    }
}

impl CreateSubmissionQueue {
    /// The command that has these fields.
    #[must_use]
    pub fn to_entry(self) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(CREATE_IO_SUBMISSION_QUEUE, 0);
        entry.cdw10 = queue_dword(self.qid, self.entries);
        entry.cdw11 = U32::new(
            u32::from(self.pc) | u32::from(self.qprio & 3) << 1 | u32::from(self.cqid) << 16,
        );
        entry.set_prp(self.address, 0);
        entry
    }
}

/// A Delete I/O Submission Queue command (Base, section 5.2.4).
#[must_use]
pub fn delete_submission_queue(qid: u16) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(DELETE_IO_SUBMISSION_QUEUE, 0);
    entry.cdw10 = U32::new(u32::from(qid));
    entry
}

/// A Delete I/O Completion Queue command (Base, section 5.2.3).
#[must_use]
pub fn delete_completion_queue(qid: u16) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(DELETE_IO_COMPLETION_QUEUE, 0);
    entry.cdw10 = U32::new(u32::from(qid));
    entry
}

/// A Doorbell Buffer Config command (Base, section 5.2.5): where the shadow doorbells and the event
/// indexes lie, a memory page each.
#[must_use]
pub fn doorbell_buffer_config(shadow: u64, event_index: u64) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(DOORBELL_BUFFER_CONFIG, 0);
    entry.set_prp(shadow, event_index);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_what_is_read() {
        let completion = CreateCompletionQueue {
            qid: 3,
            entries: 65_536,
            pc: true,
            ien: true,
            iv: 9,
            address: 0x1_0000_2000,
        };
        let entry = completion.to_entry();
        assert_eq!(CreateCompletionQueue::from(&entry), completion);
        assert_eq!(
            (entry.cdw10.get(), entry.cdw11.get()),
            (0xFFFF_0003, 0x9_0003)
        );
        let submission = CreateSubmissionQueue {
            qid: 4,
            entries: 2,
            pc: true,
            qprio: 2,
            cqid: 3,
            address: 0x3000,
        };
        let entry = submission.to_entry();
        assert_eq!(CreateSubmissionQueue::from(&entry), submission);
        assert_eq!((entry.cdw10.get(), entry.cdw11.get()), (0x1_0004, 0x3_0005));
        assert_eq!(doorbell_buffer_config(1 << 12, 2 << 12).prp(), [4096, 8192]);
        assert_eq!(delete_submission_queue(7).cdw10.get(), 7);
    }
}
