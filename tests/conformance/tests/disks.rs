//! The suite over every disk in `core`.

use corebay_conformance::{
    beds::{FaultBed, FileBed, NullBed, RamBed},
    conformance_tests,
    nvme::{NvmeBed, NvmeManner},
};
use corebay_core::disk::file::{Caching, EngineKind};

mod ram {
    use super::*;
    conformance_tests!(RamBed::new);
}

mod null {
    use super::*;
    conformance_tests!(
        NullBed::new,
        never_written_blocks_are_zeroes,
        more_operations_than_the_depth_all_end,
    );
}

mod fault_without_faults {
    use super::*;
    conformance_tests!(FaultBed::new);
}

mod file_io_uring {
    use super::*;
    conformance_tests!(|size| FileBed::new(size, EngineKind::IoUring, Caching::Direct));
}

mod file_threads {
    use super::*;
    conformance_tests!(|size| FileBed::new(size, EngineKind::Threads, Caching::Direct));
}

mod file_buffered {
    use super::*;
    conformance_tests!(|size| FileBed::new(size, EngineKind::IoUring, Caching::Buffered));
}

mod nvme_write_back {
    use super::*;
    conformance_tests!(|size| NvmeBed::new(size, NvmeManner::WriteBack));
}

mod nvme_write_through {
    use super::*;
    conformance_tests!(|size| NvmeBed::new(size, NvmeManner::WriteThrough));
}

mod nvme_sgl {
    use super::*;
    conformance_tests!(|size| NvmeBed::new(size, NvmeManner::Sgl));
}

mod nvme_sparing {
    use super::*;
    conformance_tests!(|size| NvmeBed::new(size, NvmeManner::Sparing));
}
