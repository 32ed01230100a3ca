//! I/O commands of the emulated controller.

use corebay_core::units::BlockSize;
use zerocopy::FromBytes;

use super::{
    pointer::{fault, stretches},
    state::State,
};
use crate::spec::{
    command::{
        DatasetManagement, DsmRange, NSID_ALL, Psdt, ReadWrite, SubmissionEntry, WriteZeroes, nvm,
    },
    identify::controller::oncs,
    status::Status,
};

impl State {
    pub(super) fn execute_io(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        self.counters.io_commands += 1;
        let nsid = entry.nsid.get();
        if entry.opc == nvm::FLUSH {
            return self.flush(nsid);
        }
        let block_size = self
            .block_size(nsid)
            .ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
        let optional = match entry.opc {
            nvm::COMPARE => oncs::COMPARE,
            nvm::WRITE_UNCORRECTABLE => oncs::WRITE_UNCORRECTABLE,
            nvm::WRITE_ZEROES => oncs::WRITE_ZEROES,
            nvm::DATASET_MANAGEMENT => oncs::DATASET_MANAGEMENT,
            nvm::VERIFY => oncs::VERIFY,
            _ => 0,
        };
        if self.options.oncs & optional != optional {
            return Err(Status::INVALID_OPCODE.with_dnr());
        }
        if entry.opc == nvm::DATASET_MANAGEMENT {
            return self.dataset_management(nsid, entry);
        }
        let fields = ReadWrite::from(entry);
        let blocks = u64::from(fields.blocks);
        let namespace = self.namespace(nsid).ok_or(Status::INTERNAL_ERROR)?;
        if !namespace.medium.contains(fields.slba, blocks) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        if fields.fua {
            self.counters.forced += 1;
        }
        let cached = self.options.volatile_cache && !fields.fua;
        let has_data = matches!(entry.opc, nvm::READ | nvm::WRITE | nvm::COMPARE);
        if !has_data && entry.mptr.get() != 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        match entry.opc {
            nvm::READ => self.read(nsid, entry, &fields, block_size),
            nvm::WRITE => {
                let data = self.fetch_data(entry, &fields, block_size)?;
                let namespace = self.namespace(nsid).ok_or(Status::INTERNAL_ERROR)?;
                namespace.medium.write(fields.slba, &data, cached)
            }
            nvm::COMPARE => {
                let data = self.fetch_data(entry, &fields, block_size)?;
                let medium = &mut self.namespace(nsid).ok_or(Status::INTERNAL_ERROR)?.medium;
                let mut there = vec![0; data.len()];
                medium.read(fields.slba, &mut there)?;
                match there == data {
                    true => Ok(()),
                    false => Err(Status::COMPARE_FAILURE.with_dnr()),
                }
            }
            nvm::VERIFY => {
                let medium = &mut self.namespace(nsid).ok_or(Status::INTERNAL_ERROR)?.medium;
                medium.verify(fields.slba, blocks)
            }
            nvm::WRITE_ZEROES => {
                self.check_zeroes_limit(&fields, block_size)?;
                let deac = WriteZeroes::from(entry).deac;
                if deac && self.options.dlfeat & 8 == 0 {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                let medium = &mut self.namespace(nsid).ok_or(Status::INTERNAL_ERROR)?.medium;
                medium.clear(fields.slba, blocks, cached)
            }
            nvm::WRITE_UNCORRECTABLE => {
                let medium = &mut self.namespace(nsid).ok_or(Status::INTERNAL_ERROR)?.medium;
                medium.spoil(fields.slba, blocks);
                Ok(())
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    fn flush(&mut self, nsid: u32) -> Result<(), Status> {
        self.counters.flushes += 1;
        if nsid == NSID_ALL {
            for namespace in &mut self.namespaces {
                namespace.medium.flush();
            }
            return Ok(());
        }
        let namespace = self
            .namespace(nsid)
            .ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
        namespace.medium.flush();
        Ok(())
    }

    fn check_zeroes_limit(&self, fields: &ReadWrite, size: BlockSize) -> Result<(), Status> {
        let limit = self.options.zeroes_limit;
        let bytes = size.bytes_of(u64::from(fields.blocks));
        if limit > 0 && bytes > 4096 << limit {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(())
    }

    fn data_bytes(&self, fields: &ReadWrite, size: BlockSize) -> Result<usize, Status> {
        let bytes = (fields.blocks as usize) << size.shift();
        let mdts = self.options.mdts;
        if mdts > 0 && bytes > 4096 << mdts {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(bytes)
    }

    fn read(
        &mut self,
        nsid: u32,
        entry: &SubmissionEntry,
        fields: &ReadWrite,
        size: BlockSize,
    ) -> Result<(), Status> {
        let bytes = self.data_bytes(fields, size)?;
        let medium = &mut self.namespace(nsid).ok_or(Status::INTERNAL_ERROR)?.medium;
        let mut data = vec![0; bytes];
        medium.read(fields.slba, &mut data)?;
        let metadata = vec![0xAD; self.metadata_bytes(entry, fields)];
        if !metadata.is_empty() {
            self.memory
                .write(entry.mptr.get(), &metadata)
                .map_err(fault)?;
        }
        self.put_data(entry, &data)
    }

    fn metadata_bytes(&mut self, entry: &SubmissionEntry, fields: &ReadWrite) -> usize {
        let namespace = self.namespace(entry.nsid.get());
        let bytes = namespace.map_or(0, |namespace| namespace.metadata_bytes);
        usize::from(bytes) * fields.blocks as usize
    }

    /// Moves data to the host.
    pub(super) fn put_data(&mut self, entry: &SubmissionEntry, data: &[u8]) -> Result<(), Status> {
        self.count_sgl(entry);
        let stretches = stretches(entry, data.len(), &self.memory, self.options.sgl)?;
        let mut at = 0;
        for stretch in stretches {
            let end = at + stretch.bytes;
            self.memory
                .write(stretch.address, &data[at..end])
                .map_err(fault)?;
            at = end;
        }
        Ok(())
    }

    /// Moves data from the host.
    pub(super) fn get_data(
        &mut self,
        entry: &SubmissionEntry,
        bytes: usize,
    ) -> Result<Vec<u8>, Status> {
        self.count_sgl(entry);
        let stretches = stretches(entry, bytes, &self.memory, self.options.sgl)?;
        let mut data = vec![0; bytes];
        let mut at = 0;
        for stretch in stretches {
            let end = at + stretch.bytes;
            self.memory
                .read(stretch.address, &mut data[at..end])
                .map_err(fault)?;
            at = end;
        }
        Ok(data)
    }

    fn count_sgl(&mut self, entry: &SubmissionEntry) {
        self.counters.sgls += u64::from(entry.psdt() == Psdt::Sgl);
    }

    fn fetch_data(
        &mut self,
        entry: &SubmissionEntry,
        fields: &ReadWrite,
        size: BlockSize,
    ) -> Result<Vec<u8>, Status> {
        let bytes = self.data_bytes(fields, size)?;
        let mut metadata = vec![0xAD; self.metadata_bytes(entry, fields)];
        if !metadata.is_empty() {
            self.memory
                .read(entry.mptr.get(), &mut metadata)
                .map_err(fault)?;
        }
        // The driver's promise: nothing of a block's neighbours goes there.
        if metadata.iter().any(|byte| *byte != 0) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        self.get_data(entry, bytes)
    }

    fn dataset_management(&mut self, nsid: u32, entry: &SubmissionEntry) -> Result<(), Status> {
        let fields = DatasetManagement::from(entry);
        let data = self.get_data(entry, fields.bytes())?;
        if !fields.deallocate {
            return Ok(());
        }
        let cached = self.options.volatile_cache;
        let leaves_zeroes = self.options.dlfeat & 7 == 1;
        let medium = &mut self.namespace(nsid).ok_or(Status::INTERNAL_ERROR)?.medium;
        for range in data.chunks_exact(size_of::<DsmRange>()) {
            let range = DsmRange::read_from_bytes(range).expect("a range's bytes");
            let (at, blocks) = (range.slba.get(), u64::from(range.nlb.get()));
            if !medium.contains(at, blocks) {
                return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
            }
            if leaves_zeroes {
                medium.clear(at, blocks, cached)?;
            }
        }
        Ok(())
    }
}
