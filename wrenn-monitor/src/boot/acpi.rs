//! The ACPI tables: the only way that a guest learns of its processors and devices.
//!
//! Hardware-reduced ACPI, so there is no SCI, no PM timer and no FACS. Announced are: the processors and the IOAPIC
//! (MADT), the virtio-mmio windows (`LNRO0005`), COM1 (`PNP0501`), pvpanic (`QEMU0001`), power off through the
//! sleep control register and reset through the keyboard controller. The FADT says that there is no CMOS clock,
//! for the kernel would otherwise poll one for seconds, at one exit a look.
//!
//! Source: the ACPI specification 6.5.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use super::BootError;
use super::params::put;
use crate::layout::{
    ACPI_END, ACPI_START, I8042_COMMAND_PORT, I8042_RESET, IOAPIC_BASE, LAPIC_BASE, PVPANIC_PORT,
    PVPANIC_PORT_COUNT, SERIAL_GSI, SERIAL_PORT, SERIAL_PORT_COUNT, SLEEP_PORT, VIRTIO_MMIO_SIZE,
    virtio_base, virtio_gsi,
};
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"WRENN ";
const OEM_TABLE_ID: [u8; 8] = *b"WRENNVMM";
const OEM_REVISION: u32 = 1;

/// FADT "IA-PC Boot Architecture Flags": no VGA, no MSI limits apply; bit 5: no CMOS RTC.
const NO_CMOS_RTC: u16 = 1 << 5;
/// Bit 2 of the same: do not look for VGA hardware.
const NO_VGA: u16 = 1 << 2;

/// The sleep type of "soft off" that `\_S5` announces and [`crate::power`] hears.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

/// Writes the tables for `vcpus` processors and `virtio_devices` devices, the RSDP first.
pub(super) fn write(guest: &GuestMemory, vcpus: u8, virtio_devices: usize) -> Result<(), BootError> {
    let tables = tables(vcpus, virtio_devices);
    if tables.len() as u64 > ACPI_END - ACPI_START {
        return Err(BootError::AcpiTooLarge { len: tables.len() });
    }
    put(guest, ACPI_START, &tables)
}

/// All tables in one piece, as they lie in memory from [`ACPI_START`] on.
fn tables(vcpus: u8, virtio_devices: usize) -> Vec<u8> {
    // The RSDP has to come first and to know the XSDT, which has to know the others: so it is filled in last.
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = append(&mut bytes, &dsdt(virtio_devices));
    let fadt = append(&mut bytes, &fadt(dsdt));
    let madt = append(&mut bytes, &madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut bytes, &xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

/// Adds a table, 16-byte aligned, and returns the address it will have.
fn append(bytes: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let address = ACPI_START + bytes.len() as u64;
    table.to_aml_bytes(bytes);
    address
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        // There is no button to wait for.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_CMOS_RTC | NO_VGA).into();
    fadt.reset_reg = port(I8042_COMMAND_PORT);
    fadt.reset_value = I8042_RESET;
    fadt.sleep_control_reg = port(SLEEP_PORT);
    fadt.sleep_status_reg = port(SLEEP_PORT + 1);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let mut madt =
        MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(LAPIC_BASE));
    madt.add_structure(IoApic::new(0, IOAPIC_BASE, 0));
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    madt
}

fn dsdt(virtio_devices: usize) -> impl Aml {
    let mut aml = Vec::new();
    let sleep_type = SLEEP_TYPE_OFF;
    Name::new("_S5_".into(), &Package::new(vec![&sleep_type, &ZERO])).to_aml_bytes(&mut aml);
    let virtio: Vec<VirtioNode> = (0..virtio_devices).map(VirtioNode).collect();
    let mut nodes: Vec<&dyn Aml> = virtio.iter().map(|node| node as &dyn Aml).collect();
    nodes.extend([&SerialNode as &dyn Aml, &PvPanicNode]);
    Scope::new("_SB_".into(), nodes).to_aml_bytes(&mut aml);
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    table
}

/// The virtio-mmio window in a slot.
struct VirtioNode(usize);

impl Aml for VirtioNode {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let base = u32::try_from(virtio_base(self.0)).expect("the windows lie below 4 GiB");
        let name = format!("V{:03}", self.0);
        Device::new(
            Path::new(&name),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &self.0),
                &Name::new("_CCA".into(), &ONE),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, base, VIRTIO_MMIO_SIZE as u32),
                        &Interrupt::new(true, true, false, false, virtio_gsi(self.0)),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct SerialNode;

impl Aml for SerialNode {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_DDN".into(), &"COM1"),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &IO::new(SERIAL_PORT, SERIAL_PORT, 1, SERIAL_PORT_COUNT as u8),
                        &Interrupt::new(true, true, false, false, SERIAL_GSI),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct PvPanicNode;

impl Aml for PvPanicNode {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        /// Present, enabled, shown, working.
        const STATUS: u8 = 0xf;
        Device::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_STA".into(), &STATUS),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&IO::new(
                        PVPANIC_PORT,
                        PVPANIC_PORT,
                        1,
                        PVPANIC_PORT_COUNT as u8,
                    )]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MAX_VIRTIO_DEVICES;

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn address(bytes: &[u8], at: usize) -> usize {
        (u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) - ACPI_START) as usize
    }

    /// The table at `at`, its checksum checked.
    fn table(bytes: &[u8], at: usize) -> &[u8] {
        let table = &bytes[at..at + word(bytes, at + 4)];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        table
    }

    #[test]
    fn every_table_is_reached_from_the_first_and_sums_to_zero() {
        let bytes = tables(2, 3);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        for range in [0..20, 0..36] {
            assert_eq!(bytes[range].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
        let xsdt = table(&bytes, address(&bytes, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let (fadt, madt) = (table(&bytes, address(xsdt, 36)), table(&bytes, address(xsdt, 44)));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        let dsdt = table(&bytes, address(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|window| *window == needle).count();
        assert_eq!(count(b"LNRO0005"), 3);
        assert_eq!(count(b"QEMU0001"), 1);
        assert_eq!(count(b"_S5_"), 1);
    }

    #[test]
    fn the_fadt_says_that_there_is_no_cmos_clock() {
        let bytes = tables(1, 0);
        let xsdt = table(&bytes, address(&bytes, 24));
        let fadt = table(&bytes, address(xsdt, 36));
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]) & NO_CMOS_RTC, NO_CMOS_RTC);
        assert_eq!(word(fadt, 112) >> 20 & 1, 1, "hardware-reduced");
        assert_eq!(fadt[128], I8042_RESET);
    }

    #[test]
    fn the_largest_machine_fits() {
        assert!(tables(255, MAX_VIRTIO_DEVICES).len() as u64 <= ACPI_END - ACPI_START);
    }
}
