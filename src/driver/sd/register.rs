//! What an SD card says about itself: pure functions of its registers.
//!
//! Source: SD Specifications, Part 1, Physical Layer Simplified Specification, "Card Registers" and "Responses".

/// A register of 128 bits as the host controller gives it: bits 8 to 127, lowest word first. Bits keep the numbers that
/// the specification gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongRegister(pub [u32; 4]);

impl LongRegister {
    /// `len` bits from `low` on, at most 32.
    fn bits(self, low: u32, len: u32) -> u32 {
        let whole = self
            .0
            .iter()
            .rev()
            .fold(0, |whole: u128, word| whole << 32 | u128::from(*word));
        // The controller leaves the checksum, bits 0 to 7, out.
        (whole >> (low - 8)) as u32 & ((1u64 << len) - 1) as u32
    }
}

/// Bytes that a card holds by its CSD; `None` for a layout we do not know.
pub fn capacity(csd: LongRegister) -> Option<u64> {
    let capacity = match csd.bits(126, 2) {
        0 => {
            let block_len_log2 = csd.bits(80, 4);
            let multiplier_log2 = csd.bits(47, 3) + 2;
            let blocks = u64::from(csd.bits(62, 12) + 1) << multiplier_log2;
            blocks << block_len_log2
        }
        1 => u64::from(csd.bits(48, 22) + 1) * (512 << 10),
        // SDUC: 28 bits of the same unit.
        2 => u64::from(csd.bits(48, 28) + 1) * (512 << 10),
        _ => return None,
    };
    Some(capacity)
}

/// Why the card lets nobody write, by its CSD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// TMP_WRITE_PROTECT: until somebody takes it away.
    Temporary,
    /// PERM_WRITE_PROTECT: for good.
    Permanent,
}

/// Whether the card lets nobody write, for good or for now, by its CSD.
pub fn protection(csd: LongRegister) -> Option<Protection> {
    if csd.bits(13, 1) != 0 {
        Some(Protection::Permanent)
    } else if csd.bits(12, 1) != 0 {
        Some(Protection::Temporary)
    } else {
        None
    }
}

/// Classes of commands that a card may know, by their numbers in CCC of the CSD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// ERASE and what goes with it.
    Erase = 5,
    /// SWITCH_FUNC.
    Switch = 10,
}

/// Whether the card knows the commands of `class`, by its CSD.
pub fn has_class(csd: LongRegister, class: Class) -> bool {
    csd.bits(84 + class as u32, 1) != 0
}

/// Whether single blocks can be erased, by the CSD (ERASE_BLK_EN): otherwise more goes than what was asked for.
pub fn can_erase_blocks(csd: LongRegister) -> bool {
    csd.bits(126, 2) != 0 || csd.bits(46, 1) != 0
}

/// What the card calls its kind, by the form of its CSD and its size.
pub fn kind(csd: LongRegister) -> &'static str {
    match (csd.bits(126, 2), capacity(csd)) {
        (0, _) => "SDSC",
        (1, Some(..=0x8_0000_0000)) => "SDHC",
        (1, _) => "SDXC",
        _ => "SDUC",
    }
}

/// What a card calls itself, by its CID: five characters.
pub fn name(cid: LongRegister) -> [u8; 5] {
    [96, 88, 80, 72, 64].map(|low| match cid.bits(low, 8) as u8 {
        printable @ b' '..=b'~' => printable,
        _ => b'?',
    })
}

/// Who made a card, and which it is, by its CID: manufacturer, serial number, year and month.
pub fn origin(cid: LongRegister) -> (u8, u32, u32, u32) {
    (
        cid.bits(120, 8) as u8,
        cid.bits(24, 32),
        2000 + cid.bits(12, 8),
        cid.bits(8, 4),
    )
}

/// The SD configuration register, as it comes from the card: highest byte first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scr(pub [u8; 8]);

impl Scr {
    fn bit(self, number: u32) -> bool {
        u64::from_be_bytes(self.0) >> number & 1 != 0
    }

    /// Whether the card has four data lines.
    pub fn has_four_lines(self) -> bool {
        self.bit(50)
    }

    /// Whether the card is of version 1.10 or later, which may have SWITCH_FUNC.
    pub fn is_version_1_10(self) -> bool {
        u64::from_be_bytes(self.0) >> 56 & 0xf >= 1
    }

    /// Whether the card has extension registers (CMD48, CMD49).
    pub fn has_extensions(self) -> bool {
        self.bit(34)
    }
}

/// Bytes of the answer to SWITCH_FUNC.
pub const SWITCH_STATUS_SIZE: usize = 64;

/// Functions of group 1 (access mode) by their numbers.
pub const HIGH_SPEED: u32 = 1;

/// Whether the card could be switched to high speed now, by its answer to a check. A version 1 answer says, too, that
/// the function is busy.
pub fn offers_high_speed(status: &[u8; SWITCH_STATUS_SIZE]) -> bool {
    let has = status[13] >> HIGH_SPEED & 1 != 0;
    let is_busy = status[17] >= 1 && status[29] >> HIGH_SPEED & 1 != 0;
    has && !is_busy
}

/// Whether the card is switched to high speed, by its answer to a switch.
pub fn is_high_speed(status: &[u8; SWITCH_STATUS_SIZE]) -> bool {
    u32::from(status[16] & 0xf) == HIGH_SPEED
}

/// Where a register of an extension is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extension {
    function: u32,
    page: u32,
    offset: u32,
}

impl Extension {
    /// Where all extensions are told: "General Information".
    pub const GENERAL: Self = Self {
        function: 0,
        page: 0,
        offset: 0,
    };

    /// The argument of CMD48 or CMD49 for `len` bytes from `at` on.
    pub fn argument(self, at: u32, len: u32) -> u32 {
        self.function << 27 | self.page << 18 | (self.offset + at) << 9 | (len - 1)
    }

    /// The performance enhancement function, where a general information names one. What is damaged names none.
    pub fn performance(general: &[u8; 512]) -> Option<Self> {
        const PERFORMANCE: u16 = 2;
        let word = |at: usize| {
            Some(u16::from_le_bytes(
                general.get(at..at + 2)?.try_into().ok()?,
            ))
        };
        let mut at = 16;
        for _ in 0..general[4].min(16) {
            let (code, next, registers) = (word(at)?, word(at + 40)?, *general.get(at + 42)?);
            if code == PERFORMANCE && registers == 1 {
                let [low, high] = [word(at + 44)?, word(at + 46)?].map(u32::from);
                let address = low | high << 16;
                let extension = Self {
                    function: address >> 18 & 0xf,
                    page: address >> 9 & 0xff,
                    offset: address & 0x1ff,
                };
                // Its last register that we use has to be on the same page.
                return (extension.offset <= 511 - PERFORMANCE_FLUSH).then_some(extension);
            }
            at = usize::from(next);
        }
        None
    }
}

/// In the performance enhancement register: byte 4 says whether there is a cache, 260 turns it on, 261 empties it.
pub const PERFORMANCE_CACHE: usize = 4;
/// As above.
pub const PERFORMANCE_CACHE_ON: u32 = 260;
/// As above; it reads as zero when that is done.
pub const PERFORMANCE_FLUSH: u32 = 261;

/// What kind of answer a command has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Response {
    /// None.
    None,
    /// R1, R6 and R7: 32 bits with checksum and the command's number.
    Short,
    /// R1b: as R1, and the card may be busy after it.
    ShortBusy,
    /// R3: 32 bits without checksum.
    Plain,
    /// R2: 128 bits.
    Long,
}

/// Bits in an R1 that say that something went wrong. OUT_OF_RANGE (31) is not among them: cards say it, too, when they
/// read ahead past their end, and nothing past it is ever asked for.
pub const STATUS_ERRORS: u32 = 0x7df9_0008;

/// Whether a card's status (R1) says that it waits for the next transfer, and takes data.
pub fn is_ready(status: u32) -> bool {
    const TRANSFER: u32 = 4;
    const READY_FOR_DATA: u32 = 1 << 8;
    status & READY_FOR_DATA != 0 && status >> 9 & 0xf == TRANSFER
}

/// WP_VIOLATION among them: an attempt to write what is protected.
pub const WRITE_PROTECTED: u32 = 1 << 26;

#[cfg(test)]
mod tests {
    use super::{
        Class, Extension, LongRegister, Protection, Scr, can_erase_blocks, capacity, has_class,
        is_high_speed, is_ready, kind, name, offers_high_speed, origin, protection,
    };

    /// A register made of (lowest bit, value) pairs.
    fn register(fields: &[(u32, u32)]) -> LongRegister {
        let whole = fields.iter().fold(0u128, |whole, &(low, value)| {
            whole | u128::from(value) << (low - 8)
        });
        LongRegister([0, 32, 64, 96].map(|shift| (whole >> shift) as u32))
    }

    #[test]
    fn the_capacity_of_a_standard_card_is_blocks_times_length() {
        // The specification's largest: 2 GiB with blocks of 1024 bytes.
        let csd = register(&[(126, 0), (80, 10), (62, 4095), (47, 7)]);
        assert_eq!(capacity(csd), Some(2 << 30));
        let csd = register(&[(80, 9), (62, 3), (47, 0)]);
        assert_eq!(capacity(csd), Some(4 * 4 * 512));
    }

    #[test]
    fn the_capacity_of_a_high_capacity_card_is_in_units_of_512_kib() {
        let csd = register(&[(126, 1), (48, 8191)]);
        assert_eq!(capacity(csd), Some(4 << 30));
        let csd = register(&[(126, 1), (48, 0x3f_ffff)]);
        assert_eq!(capacity(csd), Some(2 << 40));
        assert_eq!(capacity(register(&[(126, 3)])), None);
    }

    #[test]
    fn either_bit_protects_a_card_from_writes() {
        assert_eq!(protection(register(&[])), None);
        assert_eq!(
            protection(register(&[(12, 1)])),
            Some(Protection::Temporary)
        );
        assert_eq!(
            protection(register(&[(12, 3)])),
            Some(Protection::Permanent)
        );
    }

    #[test]
    fn a_name_is_five_printable_characters() {
        let cid = register(&[(96, 0x51), (88, 0x45), (80, 0x4d), (72, 0x55), (64, 0x07)]);
        assert_eq!(&name(cid), b"QEMU?");
    }

    #[test]
    fn a_card_is_ready_in_the_transfer_state_when_it_takes_data() {
        assert!(is_ready(4 << 9 | 1 << 8));
        assert!(!is_ready(7 << 9 | 1 << 8), "it programs");
        assert!(!is_ready(4 << 9));
    }

    #[test]
    fn a_card_is_named_after_its_size() {
        assert_eq!(kind(register(&[])), "SDSC");
        let of = |units: u32| kind(register(&[(126, 1), (48, units - 1)]));
        assert_eq!(of(8192), "SDHC");
        assert_eq!(of(32 << 11), "SDHC", "32 GiB");
        assert_eq!(of((32 << 11) + 1), "SDXC");
        assert_eq!(kind(register(&[(126, 2)])), "SDUC");
    }

    #[test]
    fn a_cid_tells_who_made_the_card_and_when() {
        // SanDisk's number, and the specification's example of a date: April 2001.
        let cid = register(&[(120, 3), (24, 0xdead_beef), (8, 0x014)]);
        assert_eq!(origin(cid), (3, 0xdead_beef, 2001, 4));
    }

    #[test]
    fn classes_of_commands_are_in_the_csd() {
        let csd = register(&[(84, 0b0101_1011_0101)]);
        assert!(has_class(csd, Class::Erase) && has_class(csd, Class::Switch));
        let csd = register(&[(84, 0b0001_1001_0101)]);
        assert!(!has_class(csd, Class::Erase) && !has_class(csd, Class::Switch));
    }

    #[test]
    fn only_a_standard_card_may_be_unable_to_erase_single_blocks() {
        assert!(!can_erase_blocks(register(&[])));
        assert!(can_erase_blocks(register(&[(46, 1)])));
        assert!(can_erase_blocks(register(&[(126, 1)])));
    }

    #[test]
    fn an_scr_tells_version_lines_and_extensions() {
        // As a card of version 3 with extensions says it: 02 b5 80 04 ...
        let scr = Scr([0x02, 0xb5, 0x80, 0x04, 0, 0, 0, 0]);
        assert!(scr.is_version_1_10() && scr.has_four_lines() && scr.has_extensions());
        let old = Scr([0x00, 0xa1, 0, 0, 0, 0, 0, 0]);
        assert!(!old.is_version_1_10() && !old.has_four_lines() && !old.has_extensions());
    }

    #[test]
    fn high_speed_is_offered_unless_it_is_busy() {
        let mut status = [0; 64];
        assert!(!offers_high_speed(&status));
        status[13] = 0b11;
        assert!(offers_high_speed(&status));
        status[29] = 0b10;
        assert!(
            offers_high_speed(&status),
            "a version 0 answer has no busy bits"
        );
        status[17] = 1;
        assert!(!offers_high_speed(&status));
    }

    #[test]
    fn a_switch_has_worked_where_its_answer_names_the_function() {
        let mut status = [0; 64];
        assert!(!is_high_speed(&status));
        status[16] = 0xf1;
        assert!(is_high_speed(&status));
        status[16] = 0x0f;
        assert!(!is_high_speed(&status), "not changed");
    }

    fn general(extensions: &[(u16, u32)]) -> [u8; 512] {
        let mut bytes = [0; 512];
        bytes[4] = extensions.len() as u8;
        for (i, (code, address)) in extensions.iter().enumerate() {
            let at = 16 + 48 * i;
            bytes[at..at + 2].copy_from_slice(&code.to_le_bytes());
            bytes[at + 40..at + 42].copy_from_slice(&(at as u16 + 48).to_le_bytes());
            bytes[at + 42] = 1;
            bytes[at + 44..at + 48].copy_from_slice(&address.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_performance_extension_is_found_among_others() {
        let found = Extension::performance(&general(&[(1, 0), (2, 2 << 18 | 3 << 9 | 5)]));
        let argument = found.map(|extension| extension.argument(260, 1));
        assert_eq!(argument, Some(2 << 27 | 3 << 18 | 265 << 9));
        assert_eq!(Extension::performance(&general(&[(1, 0)])), None);
        assert_eq!(Extension::GENERAL.argument(0, 512), 511);
    }

    #[test]
    fn extensions_that_cannot_be_are_none() {
        let mut wild = general(&[(1, 0), (2, 0)]);
        wild[16 + 40..16 + 42].copy_from_slice(&0xfff0u16.to_le_bytes());
        assert_eq!(Extension::performance(&wild), None);
        assert_eq!(Extension::performance(&[0xff; 512]), None);
        assert_eq!(
            Extension::performance(&general(&[(2, 300)])),
            None,
            "it leaves its page"
        );
    }
}
