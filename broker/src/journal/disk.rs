//! What the journal does to files, as a parameter, so that a test can have a disk that is full or broken.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// The operations on files that may fail because of the disk.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Has the first `bytes` of the file's room set aside; its length becomes that.
    ///
    /// # Errors
    /// [`StorageFull`](io::ErrorKind::StorageFull) where there is no room; then the file's length may be anything.
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `position`.
    ///
    /// # Errors
    /// As `pwrite`; some of it may have been written.
    fn write_at(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Has what was written go to the device.
    ///
    /// # Errors
    /// As `fdatasync`.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        loop {
            match fallocate(file, FallocateFlags::empty(), 0, bytes) {
                Err(Errno::INTR) => {}
                // The file system can't; then there is no telling beforehand whether it has room.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
                result => return Ok(result?),
            }
        }
    }

    fn write_at(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        file.write_all_at(bytes, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// Reads until `buffer` is full or the file ends. Returns how many bytes were read.
pub(super) fn read_at_most(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], position + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
