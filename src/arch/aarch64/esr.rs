//! Exception syndromes, decoded: a pure function of ESR_EL1, and the words for it.
//!
//! Source: Arm Architecture Reference Manual, ESR_EL1, "ISS encoding for an exception from a Data Abort", "ISS
//! encoding for an exception from an Instruction Abort".

use core::fmt;

/// What a memory access tried to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// Why an access failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbortKind {
    /// An address beyond the tables' reach or an entry with an impossible address, at this level.
    AddressSize(u8),
    /// No valid entry, at this level.
    Translation(u8),
    /// A valid entry whose access flag is clear, at this level.
    AccessFlag(u8),
    /// A valid entry that forbids the access, at this level.
    Permission(u8),
    /// The bus or the memory answered with an error.
    External,
    /// As above, while the tables were walked, at this level.
    ExternalOnWalk(u8),
    /// Memory or a cache found its parity or ECC wrong.
    Parity,
    /// An address that is not a multiple of what the access or its memory type asks for.
    Alignment,
    /// Two TLB entries for one address: break-before-make was forgotten.
    TlbConflict,
    /// Any other fault status code.
    Other(u8),
}

/// What an exception says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syndrome {
    /// A memory access failed.
    Abort {
        /// What it tried.
        attempt: Attempt,
        /// Why it failed.
        kind: AbortKind,
        /// Whether FAR_EL1 holds the address.
        is_address_known: bool,
    },
    /// An instruction that does not exist, is not implemented or not allowed here.
    Undefined,
    /// Floating-point or vector registers used while CPACR_EL1 denies them.
    FloatingPointDenied,
    /// A `bti` landing pad was missing.
    BranchTarget,
    /// `PSTATE.IL` was set.
    IllegalState,
    /// A program counter that is not a multiple of four.
    PcAlignment,
    /// A stack pointer that is not a multiple of sixteen.
    SpAlignment,
    /// `svc`, with its number.
    SupervisorCall(u16),
    /// `hvc`, with its number.
    HypervisorCall(u16),
    /// `smc`, with its number.
    SecureMonitorCall(u16),
    /// A system register or instruction that is trapped.
    SystemRegister,
    /// `brk`, with its number.
    Breakpoint(u16),
    /// A debug event: hardware breakpoint, watchpoint or single step.
    Debug,
    /// A floating-point exception that is trapped.
    FloatingPoint,
    /// Anything else, by exception class.
    Other(u8),
}

const WNR: u64 = 1 << 6;
const CM: u64 = 1 << 8; // cache maintenance: sets WnR, though it writes nothing
const FNV: u64 = 1 << 10; // FAR_EL1 is not valid

/// What a load or store at this exception level tried, and why it failed, if it is a translation or permission fault:
/// what [`Syndrome::decode`] says of it, for those who have to know soon.
#[inline(always)]
pub const fn data_fault(esr: u64) -> Option<(Attempt, AbortKind)> {
    const CLASS_AND_STATUS: u64 = 0x3f << 26 | 0b11_0100;
    if esr & CLASS_AND_STATUS != 0x25 << 26 | 0b00_0100 {
        return None;
    }
    let attempt = match esr & (WNR | CM) {
        WNR => Attempt::Write,
        _ => Attempt::Read,
    };
    let level = esr as u8 & 0b11;
    let kind = match esr & 0b1000 {
        0 => AbortKind::Translation(level),
        _ => AbortKind::Permission(level),
    };
    Some((attempt, kind))
}

impl Syndrome {
    /// Decodes ESR_EL1.
    #[inline]
    pub const fn decode(esr: u64) -> Self {
        let number = esr as u16;
        match esr >> 26 & 0x3f {
            0x20 | 0x21 => Self::abort(esr, Attempt::Execute),
            0x24 | 0x25 if esr & (WNR | CM) == WNR => Self::abort(esr, Attempt::Write),
            0x24 | 0x25 => Self::abort(esr, Attempt::Read),
            0x00 => Self::Undefined,
            0x07 => Self::FloatingPointDenied,
            0x0d => Self::BranchTarget,
            0x0e => Self::IllegalState,
            0x15 => Self::SupervisorCall(number),
            0x16 => Self::HypervisorCall(number),
            0x17 => Self::SecureMonitorCall(number),
            0x18 => Self::SystemRegister,
            0x22 => Self::PcAlignment,
            0x26 => Self::SpAlignment,
            0x2c => Self::FloatingPoint,
            0x30..=0x35 => Self::Debug,
            0x3c => Self::Breakpoint(number),
            class => Self::Other(class as u8),
        }
    }

    #[inline]
    const fn abort(esr: u64, attempt: Attempt) -> Self {
        let status = esr as u8 & 0x3f;
        let level = status & 0b11;
        let kind = match status {
            0b00_0000..=0b00_0011 => AbortKind::AddressSize(level),
            0b00_0100..=0b00_0111 => AbortKind::Translation(level),
            0b00_1000..=0b00_1011 => AbortKind::AccessFlag(level),
            0b00_1100..=0b00_1111 => AbortKind::Permission(level),
            0b01_0000 => AbortKind::External,
            0b01_0100..=0b01_0111 => AbortKind::ExternalOnWalk(level),
            0b01_1000 | 0b01_1100..=0b01_1111 => AbortKind::Parity,
            0b10_0001 => AbortKind::Alignment,
            0b11_0000 => AbortKind::TlbConflict,
            other => AbortKind::Other(other),
        };
        // FnV speaks of synchronous external aborts only.
        let is_address_known = !matches!(kind, AbortKind::External) || esr & FNV == 0;
        Self::Abort {
            attempt,
            kind,
            is_address_known,
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "load",
            Self::Write => "store",
            Self::Execute => "instruction fetch",
        })
    }
}

impl fmt::Display for AbortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressSize(level) => write!(f, "address size fault at level {level}"),
            Self::Translation(level) => write!(f, "translation fault at level {level}"),
            Self::AccessFlag(level) => write!(f, "access flag fault at level {level}"),
            Self::Permission(level) => write!(f, "permission fault at level {level}"),
            Self::External => f.write_str("external abort: nothing answers at that address"),
            Self::ExternalOnWalk(level) => {
                write!(f, "external abort on a table walk at level {level}")
            }
            Self::Parity => f.write_str("parity or ECC error"),
            Self::Alignment => f.write_str("alignment fault"),
            Self::TlbConflict => f.write_str("TLB conflict"),
            Self::Other(status) => write!(f, "fault status {status:#04x}"),
        }
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abort { attempt, kind, .. } => write!(f, "{attempt} failed: {kind}"),
            Self::Undefined => f.write_str("undefined instruction"),
            Self::FloatingPointDenied => f.write_str("floating-point or vector registers denied"),
            Self::BranchTarget => f.write_str("branch target exception"),
            Self::IllegalState => f.write_str("illegal execution state"),
            Self::PcAlignment => f.write_str("program counter not a multiple of 4"),
            Self::SpAlignment => f.write_str("stack pointer not a multiple of 16"),
            Self::SupervisorCall(number) => write!(f, "svc #{number}"),
            Self::HypervisorCall(number) => write!(f, "hvc #{number}"),
            Self::SecureMonitorCall(number) => write!(f, "smc #{number}"),
            Self::SystemRegister => f.write_str("trapped system register access"),
            Self::Breakpoint(number) => write!(f, "brk #{number}"),
            Self::Debug => f.write_str("debug exception"),
            Self::FloatingPoint => f.write_str("floating-point exception"),
            Self::Other(class) => write!(f, "exception of class {class:#04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AbortKind, Attempt, Syndrome, data_fault};

    fn abort(attempt: Attempt, kind: AbortKind) -> Syndrome {
        Syndrome::Abort {
            attempt,
            kind,
            is_address_known: true,
        }
    }

    #[test]
    fn data_aborts_tell_loads_from_stores() {
        assert_eq!(
            Syndrome::decode(0x9600_0007),
            abort(Attempt::Read, AbortKind::Translation(3))
        );
        assert_eq!(
            Syndrome::decode(0x9600_0047),
            abort(Attempt::Write, AbortKind::Translation(3))
        );
        assert_eq!(
            Syndrome::decode(0x9600_004f),
            abort(Attempt::Write, AbortKind::Permission(3))
        );
    }

    #[test]
    fn cache_maintenance_is_a_read_though_wnr_is_set() {
        assert_eq!(
            Syndrome::decode(0x9600_0147),
            abort(Attempt::Read, AbortKind::Translation(3))
        );
    }

    #[test]
    fn instruction_aborts_are_fetches() {
        assert_eq!(
            Syndrome::decode(0x8600_000f),
            abort(Attempt::Execute, AbortKind::Permission(3))
        );
        assert_eq!(
            Syndrome::decode(0x8200_0004),
            abort(Attempt::Execute, AbortKind::Translation(0))
        );
    }

    #[test]
    fn every_level_of_every_table_fault_is_told() {
        for level in 0..4u8 {
            let esr = |status: u64| 0x9600_0000 | status << 2 | u64::from(level);
            let read = |kind| abort(Attempt::Read, kind);
            assert_eq!(
                Syndrome::decode(esr(0)),
                read(AbortKind::AddressSize(level))
            );
            assert_eq!(
                Syndrome::decode(esr(1)),
                read(AbortKind::Translation(level))
            );
            assert_eq!(Syndrome::decode(esr(2)), read(AbortKind::AccessFlag(level)));
            assert_eq!(Syndrome::decode(esr(3)), read(AbortKind::Permission(level)));
        }
    }

    #[test]
    fn an_external_abort_may_not_know_its_address() {
        assert_eq!(
            Syndrome::decode(0x9600_0410),
            Syndrome::Abort {
                attempt: Attempt::Read,
                kind: AbortKind::External,
                is_address_known: false
            }
        );
    }

    #[test]
    fn calls_and_breakpoints_keep_their_number() {
        assert_eq!(Syndrome::decode(0x5600_002a), Syndrome::SupervisorCall(42));
        assert_eq!(Syndrome::decode(0xf200_03e8), Syndrome::Breakpoint(1000));
        assert_eq!(Syndrome::decode(0x0200_0000), Syndrome::Undefined);
        assert_eq!(Syndrome::decode(0x1fe0_0000), Syndrome::FloatingPointDenied);
    }

    #[test]
    fn alignment_is_told_in_words() {
        extern crate std;
        use std::string::ToString;
        assert_eq!(
            Syndrome::decode(0x9600_0061).to_string(),
            "store failed: alignment fault"
        );
    }

    #[test]
    fn a_data_fault_is_what_decoding_says() {
        for class in 0..64 {
            for status in 0..0x400 {
                let esr = class << 26 | status;
                let decoded = match Syndrome::decode(esr) {
                    Syndrome::Abort {
                        attempt,
                        kind: kind @ (AbortKind::Translation(_) | AbortKind::Permission(_)),
                        ..
                    } if class == 0x25 => Some((attempt, kind)),
                    _ => None,
                };
                assert_eq!(data_fault(esr), decoded, "{esr:#x}");
            }
        }
    }
}
