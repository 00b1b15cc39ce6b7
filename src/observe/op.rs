//! What is counted apart: the values of the labels.

/// An enum whose variants index an array of series and have a fixed label value each.
macro_rules! labelled {
    ($(#[$about:meta])* $name:ident { $($(#[$word:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$word])* #[doc = concat!("`", $label, "`")] $variant,)* }

        impl $name {
            /// All of them, in the order of the text.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The value of the label in the text.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

labelled! {
    /// An operation of FUSE, under its own name.
    Op {
        Lookup = "lookup",
        Forget = "forget",
        Getattr = "getattr",
        Setattr = "setattr",
        Readlink = "readlink",
        Mknod = "mknod",
        Mkdir = "mkdir",
        Unlink = "unlink",
        Rmdir = "rmdir",
        Symlink = "symlink",
        Rename = "rename",
        Link = "link",
        Open = "open",
        Create = "create",
        Read = "read",
        Write = "write",
        Flush = "flush",
        Release = "release",
        Fsync = "fsync",
        Opendir = "opendir",
        Readdir = "readdir",
        Readdirplus = "readdirplus",
        Releasedir = "releasedir",
        Fsyncdir = "fsyncdir",
        Statfs = "statfs",
        Setxattr = "setxattr",
        Getxattr = "getxattr",
        Listxattr = "listxattr",
        Removexattr = "removexattr",
        Access = "access",
        Getlk = "getlk",
        Setlk = "setlk",
        Fallocate = "fallocate",
        Lseek = "lseek",
        CopyFileRange = "copy_file_range",
        Poll = "poll",
        Ioctl = "ioctl",
    }
}

labelled! {
    /// Where the bytes of a read came from.
    ReadMode {
        /// Lent straight from a mapped window:
        Mmap = "mmap",
        /// Read into a buffer:
        Pread = "pread",
        /// Lent from a block of the cache that was in memory, fetched or checked just now:
        Block = "block",
    }
}

labelled! {
    /// How an open file is served.
    OpenMode {
        /// Reads come to us, and are answered from mapped windows:
        Mmap = "mmap",
        /// Reads come to us, and are answered from a buffer:
        Pread = "pread",
        /// The kernel reads and writes the source's file by itself:
        Passthrough = "passthrough",
        /// Reads come to us, and are answered from the cache, or fetched into it:
        Cached = "cached",
        /// The kernel reads the cache's file by itself:
        Whole = "whole",
    }
}

labelled! {
    /// Whether the kernel may serve files by itself, and why not.
    PassthroughState {
        /// It does:
        On = "on",
        /// `passthrough=never`:
        NotAsked = "not_asked",
        /// The daemon lacks CAP_SYS_ADMIN:
        NotPrivileged = "not_privileged",
        /// The kernel cannot (before Linux 6.9):
        NotSupported = "not_supported",
    }
}

labelled! {
    /// Why bytes of an `io=mmap` mount came by pread after all.
    Fallback {
        /// All windows were in use and another would have passed the budget:
        Budget = "budget",
        /// A small request elsewhere, which is no reason to unmap another window:
        Cold = "cold",
        /// A page could not be had; the file was truncated or the device failed:
        Fault = "fault",
        /// The file (or its file system) cannot be mapped:
        Unmappable = "unmappable",
        /// A virtual file, which has no file to map:
        Control = "control",
    }
}

labelled! {
    /// By what the source is watched.
    WatchedBy {
        /// By a mark on each file system:
        Fanotify = "fanotify",
        /// By a watch on each directory:
        Inotify = "inotify",
    }
}

labelled! {
    /// What the kernel was told to forget.
    Invalidated {
        /// A name of a directory:
        Name = "name",
        /// Bytes and attributes of a file:
        Data = "data",
        /// Attributes of an inode:
        Attributes = "attributes",
        /// All that it had:
        Everything = "everything",
    }
}

labelled! {
    /// How a copy ended.
    CopyEnd {
        /// The whole copy stands:
        Done = "done",
        /// An error; nothing is left of it:
        Failed = "failed",
        /// Its caller gave up; nothing is left of it:
        Cancelled = "cancelled",
    }
}
