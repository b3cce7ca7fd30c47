//! The formats that adapters are written in.

/// How an adapter file that is written here names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterFormat {
    /// PEFT's names, as diffusers writes them.
    Diffusers,
    /// The names of kohya's sd-scripts, which most programs with a graphical interface read.
    Kohya,
    /// The names of UNO's own adapter and of XLabs.
    Uno,
    /// No pairs of factors, but a copy of the IP-Adapter's file with what was trained of it.
    IpAdapter,
}

impl AdapterFormat {
    /// Those of pairs of factors.
    pub const ALL: [Self; 3] = [Self::Diffusers, Self::Kohya, Self::Uno];

    /// As it is written on a command line and in a graph file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::Kohya => "kohya",
            Self::Uno => "uno",
            Self::IpAdapter => "ip_adapter",
        }
    }

    /// The file of this format beside others of the same adapter: `adapter.safetensors`, `adapter.kohya.safetensors`.
    pub fn file_name(self, stem: &str) -> String {
        match self {
            Self::Diffusers => format!("{stem}.safetensors"),
            other => format!("{stem}.{}.safetensors", other.name()),
        }
    }
}
