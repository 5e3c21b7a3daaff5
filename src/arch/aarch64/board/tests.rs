use super::{
    Board, BoardError, Controller, Interrupt, Known, LedPin, LedWiring, Line, PsciConduit,
    RaspberryPi, SdHostKind, Trigger, Window,
};
use crate::arch::aarch64::device_tree::TreeError;
use crate::arch::aarch64::device_tree::build::Builder;
use crate::mm::addr::PhysAddr;
use alloc::boxed::Box;
use alloc::vec::Vec;
use proptest::prelude::{Strategy, any, prop, proptest};

const TREE_AT: PhysAddr = PhysAddr(0x4800_0000);

fn board(bytes: Vec<u8>) -> Result<Board, BoardError> {
    Board::from_tree(Box::leak(bytes.into_boxed_slice()), TREE_AT)
}

fn ranges(ranges: &super::Ranges) -> Vec<(u64, u64)> {
    ranges.iter().map(|r| (r.start.0, r.end.0)).collect()
}

fn gic(id: u32) -> Option<Line> {
    Some(Line::level(Interrupt::Gic(id)))
}

/// As QEMU's `virt` describes itself, shortened. The controller comes last: what refers to it comes before.
fn virt() -> Builder {
    let mut b = Builder::default();
    b.begin("").cells("interrupt-parent", &[0x8002]);
    b.text("model", "linux,dummy-virt");
    b.text("compatible", "linux,dummy-virt");
    b.cells("#size-cells", &[2]).cells("#address-cells", &[2]);
    b.begin("psci").text("method", "hvc");
    b.text("compatible", "arm,psci-1.0\0arm,psci-0.2\0arm,psci")
        .end();
    b.begin("memory@40000000").text("device_type", "memory");
    b.cells("reg", &[0, 0x4000_0000, 0, 0x1000_0000]).end();
    for (at, number) in [(0xa00_0000, 16), (0xa00_0200, 17)] {
        b.begin("virtio_mmio@x").text("compatible", "virtio,mmio");
        b.cells("reg", &[0, at, 0, 0x200]);
        b.cells("interrupts", &[0, number, 1]).end();
    }
    b.begin("pcie@10000000")
        .text("compatible", "pci-host-ecam-generic");
    b.cells("#address-cells", &[3]).cells("#size-cells", &[2]);
    b.cells("bus-range", &[0, 0xff]);
    b.cells("reg", &[0x40, 0x1000_0000, 0, 0x1000_0000]);
    let io = [0x100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000];
    let memory_32 = [0x200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x2eff_0000];
    let memory_64 = [0x300_0000, 0x80, 0, 0x80, 0, 0x80, 0];
    b.cells("ranges", &[io, memory_32, memory_64].concat());
    b.cells("interrupt-map-mask", &[0x1800, 0, 0, 7]);
    b.cells("interrupt-map", &[0, 0, 0, 1, 0x8002, 0, 0, 0, 3, 4])
        .end();
    b.begin("pl011@9000000")
        .text("compatible", "arm,pl011\0arm,primecell");
    b.cells("interrupts", &[0, 1, 4]);
    b.cells("reg", &[0, 0x900_0000, 0, 0x1000]).end();
    b.begin("cpus")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[0]);
    for (name, status) in [("cpu@0", "okay"), ("cpu@1", "okay"), ("cpu@2", "fail")] {
        b.begin(name)
            .text("device_type", "cpu")
            .text("status", status)
            .end();
    }
    b.end();
    b.begin("timer")
        .text("compatible", "arm,armv8-timer\0arm,armv7-timer");
    b.cells("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4])
        .end();
    b.begin("chosen")
        .text("bootargs", "selftest timer")
        .text("stdout-path", "/pl011@9000000");
    b.cells("linux,initrd-start", &[0x4400_0000])
        .cells("linux,initrd-end", &[0x4400_1000]);
    b.cells("kaslr-seed", &[1, 2]).end();
    b
}

fn gic_v2(b: &mut Builder) -> Vec<u8> {
    b.begin("intc@8000000")
        .text("compatible", "arm,cortex-a15-gic");
    b.cells("phandle", &[0x8002])
        .cells("#interrupt-cells", &[3]);
    b.cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    b.cells(
        "reg",
        &[0, 0x800_0000, 0, 0x1_0000, 0, 0x801_0000, 0, 0x1_0000],
    )
    .end();
    b.end().finish()
}

#[test]
fn virt_is_read_from_its_tree() {
    let board = board(gic_v2(virt().reserve(0x4900_0000, 0x1000))).unwrap();
    assert_eq!(board.model, "linux,dummy-virt");
    assert_eq!(board.cores, 2, "one of three is said to have failed");
    assert_eq!(ranges(&board.ram), [(0x4000_0000, 0x5000_0000)]);
    assert_eq!(board.uart.base, PhysAddr(0x900_0000));
    assert_eq!(board.uart.interrupt, gic(33));
    assert_eq!(board.uart.clock_hz, None);
    let controller = Controller::GicV2 {
        distributor: PhysAddr(0x800_0000),
        cpu: PhysAddr(0x801_0000),
    };
    assert_eq!(board.controller, controller);
    assert_eq!(Some(board.timer_interrupt), gic(27));
    assert_eq!(board.psci, Some(PsciConduit::Hvc));
    assert_eq!(board.raspberry_pi, None);
    assert_eq!(board.command_line, "selftest timer");
    assert_eq!(board.seed, [0, 0, 0, 1, 0, 0, 0, 2]);
}

#[test]
fn what_is_in_memory_already_is_reserved() {
    let mut b = virt();
    b.begin("reserved-memory")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2]);
    b.bytes("ranges", &[]);
    b.begin("firmware@4a000000")
        .cells("reg", &[0, 0x4a00_0000, 0, 0x2000])
        .end();
    b.begin("off@4b000000")
        .cells("reg", &[0, 0x4b00_0000, 0, 0x2000]);
    b.text("status", "disabled").end().end();
    let bytes = gic_v2(b.reserve(0x4900_0000, 0x1000));
    let tree_end = TREE_AT.0 + bytes.len() as u64;
    let reserved = [
        (0x4400_0000, 0x4400_1000),
        (TREE_AT.0, tree_end),
        (0x4900_0000, 0x4900_1000),
        (0x4a00_0000, 0x4a00_2000),
    ];
    assert_eq!(ranges(&board(bytes).unwrap().reserved), reserved);
}

#[test]
fn virtio_slots_and_pci_have_their_interrupts_and_windows() {
    let board = board(gic_v2(&mut virt())).unwrap();
    let slots: Vec<_> = board
        .virtio_slots
        .iter()
        .map(|slot| (slot.base.0, slot.interrupt.unwrap()))
        .collect();
    let edge = |id| Line {
        interrupt: Interrupt::Gic(id),
        trigger: Trigger::Edge,
    };
    assert_eq!(slots, [(0xa00_0000, edge(48)), (0xa00_0200, edge(49))]);
    let pci = board.pci.unwrap();
    assert_eq!(pci.ecam, PhysAddr(0x40_1000_0000));
    assert_eq!(pci.ecam_size, 0x1000_0000);
    let memory_32 = Window {
        bus: 0x1000_0000,
        physical: PhysAddr(0x1000_0000),
        size: 0x2eff_0000,
    };
    assert_eq!(pci.memory_32, Some(memory_32));
    assert_eq!(pci.memory_64.unwrap().physical, PhysAddr(0x80_0000_0000));
    assert_eq!(pci.interrupts.line(4 << 11, 1), gic(35));
}

#[test]
fn a_gic_v3_may_have_several_regions_of_redistributors() {
    let mut b = virt();
    b.begin("intc@8000000").text("compatible", "arm,gic-v3");
    b.cells("phandle", &[0x8002])
        .cells("#interrupt-cells", &[3]);
    b.cells("#redistributor-regions", &[2]);
    let regs = [
        0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000, 0x40, 0, 0, 0x400_0000,
    ];
    b.cells("reg", &regs).end();
    let board = board(b.end().finish()).unwrap();
    let Controller::GicV3 {
        distributor,
        redistributors,
    } = board.controller
    else {
        panic!("{:?}", board.controller);
    };
    assert_eq!(distributor, PhysAddr(0x800_0000));
    let regions = [
        (PhysAddr(0x80a_0000), 0xf6_0000),
        (PhysAddr(0x40_0000_0000), 0x400_0000),
    ];
    assert_eq!(redistributors[..], regions);
}

#[test]
fn the_console_is_the_uart_that_stdout_path_names_if_it_is_one_we_know() {
    let base = |path: &str| {
        let mut b = Builder::default();
        b.begin("")
            .cells("#size-cells", &[1])
            .cells("#address-cells", &[1]);
        b.begin("memory@0")
            .text("device_type", "memory")
            .cells("reg", &[0, 4096])
            .end();
        for (name, at, status) in [
            ("uart@1000", 0x1000, "disabled"),
            ("uart@2000", 0x2000, "okay"),
            ("uart@3000", 0x3000, "okay"),
        ] {
            b.begin(name)
                .text("compatible", "arm,pl011")
                .text("status", status);
            b.cells("reg", &[at, 0x1000]).end();
        }
        b.begin("gic")
            .text("compatible", "arm,gic-400")
            .cells("reg", &[1, 1, 2, 1])
            .end();
        b.begin("chosen").text("stdout-path", path).end();
        board(b.end().finish()).unwrap().uart.base.0
    };
    assert_eq!(base("/uart@3000"), 0x3000);
    assert_eq!(base("/uart@3000:115200n8"), 0x3000);
    assert_eq!(base("serial1:115200n8"), 0x2000);
    assert_eq!(base("/uart@1000"), 0x2000, "that one is switched off");
}

/// As Linux describes a Raspberry Pi 3, shortened.
fn pi3() -> Builder {
    let mut b = Builder::default();
    b.begin("")
        .text("compatible", "raspberrypi,3-model-b\0brcm,bcm2837");
    b.text("model", "Raspberry Pi 3 Model B")
        .cells("interrupt-parent", &[1]);
    b.cells("#size-cells", &[1]).cells("#address-cells", &[1]);
    b.begin("chosen")
        .text("stdout-path", "serial1:115200n8")
        .end();
    b.begin("soc")
        .cells("#size-cells", &[1])
        .cells("#address-cells", &[1]);
    let ranges = [
        0x7e00_0000,
        0x3f00_0000,
        0x100_0000,
        0x4000_0000,
        0x4000_0000,
        0x1000,
    ];
    b.cells("ranges", &ranges)
        .cells("dma-ranges", &[0xc000_0000, 0, 0x3f00_0000]);
    let mut device = |compatible: &str, at: u32, size: u32, interrupt: &[u32]| {
        b.begin("device")
            .text("compatible", compatible)
            .text("status", "okay");
        b.cells("reg", &[at, size])
            .cells("interrupts", interrupt)
            .end();
    };
    device("arm,pl011\0arm,primecell", 0x7e20_1000, 0x200, &[2, 25]);
    device("brcm,bcm2835-aux-uart", 0x7e21_5040, 0x40, &[1, 29]);
    device("brcm,bcm2835-gpio", 0x7e20_0000, 0xb4, &[2, 17]);
    device("brcm,bcm2835-mbox", 0x7e00_b880, 0x40, &[0, 1]);
    device(
        "brcm,bcm2835-pm\0brcm,bcm2835-pm-wdt",
        0x7e10_0000,
        0x114,
        &[],
    );
    device("brcm,bcm2835-sdhci", 0x7e30_0000, 0x100, &[2, 30]);
    device("brcm,bcm2835-dma", 0x7e00_7000, 0xf00, &[1, 16]);
    device("brcm,bcm2835-system-timer", 0x7e00_3000, 0x1000, &[1, 0]);
    b.begin("firmware").begin("gpio");
    b.text("compatible", "raspberrypi,firmware-gpio")
        .cells("phandle", &[10])
        .end()
        .end();
    b.begin("armctrl")
        .text("compatible", "brcm,bcm2836-armctrl-ic");
    b.cells("reg", &[0x7e00_b200, 0x200])
        .cells("phandle", &[1])
        .cells("#interrupt-cells", &[2])
        .end();
    b.begin("local").text("compatible", "brcm,bcm2836-l1-intc");
    b.cells("reg", &[0x4000_0000, 0x100])
        .cells("phandle", &[0x19])
        .cells("#interrupt-cells", &[2])
        .end();
    b.end();
    b.begin("leds").begin("led-act").text("label", "ACT");
    b.cells("gpios", &[10, 2, 0]).end().end();
    b.begin("timer")
        .text("compatible", "arm,armv7-timer")
        .cells("interrupt-parent", &[0x19]);
    b.cells("interrupts", &[0, 4, 1, 4, 3, 4, 2, 4]).end();
    b
}

#[test]
fn a_pi_3_is_read_from_its_tree() {
    let mut b = pi3();
    b.begin("memory@0")
        .text("device_type", "memory")
        .cells("reg", &[0, 0x3c00_0000])
        .end();
    let board = board(b.end().finish()).unwrap();
    let built_in = Board::built_in(Known::Pi3).unwrap();
    assert_eq!(board.controller, built_in.controller);
    assert_eq!(board.timer_interrupt, built_in.timer_interrupt);
    assert_eq!(board.uart, built_in.uart);
    assert_eq!(board.raspberry_pi, built_in.raspberry_pi);
    assert_eq!(board.sd_hosts, built_in.sd_hosts);
    assert_eq!(board.ram, built_in.ram);
    assert_eq!(board.psci, None);
}

#[test]
fn a_pi_3s_peripherals_are_no_ram_even_if_its_tree_says_so() {
    let mut b = pi3();
    b.begin("memory@0")
        .text("device_type", "memory")
        .cells("reg", &[0, 0x4000_0000])
        .end();
    let board = board(b.end().finish()).unwrap();
    assert_eq!(ranges(&board.ram), [(0, 0x3f00_0000)]);
}

#[test]
fn addresses_are_translated_through_every_bus() {
    let mut b = Builder::default();
    b.begin("")
        .cells("#size-cells", &[1])
        .cells("#address-cells", &[2]);
    b.begin("memory@0")
        .text("device_type", "memory")
        .cells("reg", &[0, 0, 4096])
        .end();
    b.begin("outer")
        .cells("#size-cells", &[1])
        .cells("#address-cells", &[1]);
    b.cells("ranges", &[0x1000, 5, 0, 0x1000, 0x2000, 6, 0, 0x1000]);
    b.begin("inner")
        .cells("#size-cells", &[1])
        .cells("#address-cells", &[2]);
    b.cells("ranges", &[9, 0, 0x1800, 0x800]);
    b.begin("uart")
        .text("compatible", "arm,pl011")
        .cells("reg", &[9, 0x10, 1])
        .end();
    b.end();
    b.begin("no-ranges")
        .cells("#size-cells", &[1])
        .cells("#address-cells", &[1]);
    b.begin("pm")
        .text("compatible", "brcm,bcm2835-pm")
        .cells("reg", &[1, 1])
        .end();
    b.end();
    b.begin("gic")
        .text("compatible", "arm,gic-400")
        .cells("reg", &[0x1fff, 1, 0x2fff, 1])
        .end();
    let board = board(b.end().end().finish()).unwrap();
    assert_eq!(board.uart.base, PhysAddr(0x5_0000_0810));
    assert_eq!(board.uart.interrupt, None, "it names none");
    let controller = Controller::GicV2 {
        distributor: PhysAddr(0x5_0000_0fff),
        cpu: PhysAddr(0x6_0000_0fff),
    };
    assert_eq!(board.controller, controller);
    assert_eq!(board.raspberry_pi, None);
}

/// A Pi with its DMA engine on a bus on a bus, each with its `dma-ranges`, and a LED of the chip's.
#[test]
fn what_a_device_sees_of_memory_goes_through_every_bus() {
    let window = |outer: &[u32], inner: &[u32]| {
        let mut b = Builder::default();
        b.begin("").text("compatible", "brcm,bcm2711");
        b.cells("#size-cells", &[1]).cells("#address-cells", &[1]);
        b.begin("memory@0").text("device_type", "memory");
        b.cells("reg", &[0, 4096]).end();
        b.begin("leds").begin("led-act").cells("gpios", &[7, 29, 1]);
        b.end().end();
        for ranges in [outer, inner] {
            b.begin("bus").cells("ranges", &[]);
            b.cells("#size-cells", &[1]).cells("#address-cells", &[1]);
            b.cells("dma-ranges", ranges);
        }
        for (name, at) in [
            ("brcm,bcm2835-dma", 0x7000),
            ("brcm,bcm2711-gpio", 0x20_0000),
            ("brcm,bcm2835-mbox", 0xb880),
            ("brcm,bcm2835-pm", 0x10_0000),
            ("arm,pl011", 0x20_1000),
        ] {
            b.begin("device").text("compatible", name);
            b.cells("reg", &[at, 0x100]).cells("phandle", &[7]).end();
        }
        b.begin("gic").text("compatible", "arm,gic-400");
        b.cells("reg", &[1, 1, 2, 1]).end();
        let board = board(b.end().end().end().finish()).unwrap();
        let pi = board.raspberry_pi.unwrap();
        let led = LedWiring {
            pin: LedPin::Gpio(29),
            is_low_active: true,
        };
        assert_eq!(pi.activity_led, Some(led));
        let window = pi.dma.unwrap().1.unwrap();
        (window.bus, window.physical.0, window.size)
    };
    let pi = [0xc000_0000, 0, 0x3f00_0000];
    assert_eq!(window(&pi, &[]), (0xc000_0000, 0, 0x3f00_0000));
    assert_eq!(window(&[], &pi), (0xc000_0000, 0, 0x3f00_0000));
    let inner = [0x4000_0000, 0xc000_1000, 0x7f00_0000];
    assert_eq!(window(&pi, &inner), (0x4000_0000, 0x1000, 0x3eff_f000));
    // What no bus says is as the board's own.
    assert_eq!(window(&[], &[]), (0xc000_0000, 0, 0x3f00_0000));
}

#[test]
fn what_nothing_runs_without_is_named_when_it_is_missing() {
    let error = |build: fn(&mut Builder)| {
        let mut b = Builder::default();
        b.begin("")
            .cells("#size-cells", &[1])
            .cells("#address-cells", &[1]);
        build(&mut b);
        board(b.end().finish()).unwrap_err()
    };
    let controller = |b: &mut Builder| {
        b.begin("gic")
            .text("compatible", "arm,gic-400")
            .cells("reg", &[1, 1, 2, 1])
            .end();
    };
    assert_eq!(error(|_| ()), BoardError::Missing("interrupt controller"));
    assert_eq!(error(controller), BoardError::Missing("memory"));
    let with_memory = |b: &mut Builder| {
        b.begin("gic")
            .text("compatible", "arm,gic-400")
            .cells("reg", &[1, 1, 2, 1])
            .end();
        b.begin("memory@0")
            .text("device_type", "memory")
            .cells("reg", &[0, 4096])
            .end();
    };
    assert_eq!(error(with_memory), BoardError::Missing("PL011 UART"));
}

#[test]
fn a_property_that_cannot_be_is_refused_with_its_offset() {
    let mut b = Builder::default();
    b.begin("").cells("#address-cells", &[5]);
    let error = board(b.end().finish()).unwrap_err();
    assert_eq!(error, BoardError::Tree(TreeError::Property { at: 64 }));
}

#[test]
fn a_board_without_a_tree_is_known_by_its_core_and_place() {
    let pi = PhysAddr(0x20_0000);
    assert_eq!(Known::guess(pi, 0xd03), Some(Known::Pi3));
    assert_eq!(Known::guess(pi, 0xd08), Some(Known::Pi4));
    assert_eq!(Known::guess(pi, 0xd0b), None);
    assert_eq!(
        Known::guess(PhysAddr(0x4020_0000), 0xd08),
        Some(Known::Virt)
    );
    assert!(Board::built_in(Known::Virt).is_none());
    let pi4 = Board::built_in(Known::Pi4).unwrap();
    assert_eq!(pi4.sd_hosts[1].kind, SdHostKind::Emmc2);
    let registers = RaspberryPi {
        gpio: PhysAddr(0xfe20_0000),
        mailbox: PhysAddr(0xfe00_b880),
        watchdog: PhysAddr(0xfe10_0000),
        dma: Some((PhysAddr(0xfe00_7000), pi4.sd_hosts[0].dma)),
        system_timer: Some(PhysAddr(0xfe00_3000)),
        activity_led: Some(LedWiring {
            pin: LedPin::Gpio(42),
            is_low_active: false,
        }),
    };
    assert_eq!(pi4.raspberry_pi, Some(registers));
}

/// Everything that reads a board's parts.
fn read_all(bytes: Vec<u8>) {
    // A `Board` lives for ever, as the tree it is made of: what a test leaks is some kilobytes a case.
    if let Ok(board) = board(bytes) {
        assert!(!alloc::format!("{board} {board:?}").is_empty());
        if let Some(pci) = board.pci {
            for device in 0..4 {
                for pin in 0..6 {
                    let _any = pci.interrupts.line(device << 11, pin);
                }
            }
        }
    }
}

fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: if cfg!(miri) { 4 } else { 4096 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_damaged_tree_is_read_or_refused_but_never_a_panic(is_pi: bool, damage in mutations()) {
        let mut bytes = if is_pi { pi3().end().finish() } else { gic_v2(&mut virt()) };
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        read_all(bytes);
    }

    #[test]
    fn a_tree_with_any_word_in_any_place_is_never_a_panic(is_pi: bool, index: prop::sample::Index, word: u32) {
        let mut bytes = if is_pi { pi3().end().finish() } else { gic_v2(&mut virt()) };
        let at = 4 * index.index(bytes.len() / 4);
        bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        read_all(bytes);
    }

    #[test]
    fn a_tree_that_is_cut_off_is_never_a_panic(index: prop::sample::Index) {
        let mut bytes = gic_v2(&mut virt());
        bytes.truncate(index.index(bytes.len()));
        read_all(bytes);
    }
}
