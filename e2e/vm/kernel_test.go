//go:build linux

package vm_test

import "testing"

// Debian's kernel has what the one of this machine may lack: WireGuard, VLAN filtering of
// bridges, each of nftables' hooks. What is tested of the data path here is tested there, all
// but what must be done in a time, which an emulated processor takes longer for, the processes that
// stand in for the kernel's WireGuard, and iptables, which is not installed there.
func TestTheDataPathOnDebiansKernel(t *testing.T) {
	w := common(t)
	pick := "."
	if testing.Short() {
		pick = "TestCases|TestSealedForged|TestForgedFrames|TestRestart|TestFeatures|TestWhatStandsInTheWay|TestTheHostHasALink"
	}
	out, err := w.two.Output(t.Context(), kernelTests, "-test.v", "-test.run", pick, "-test.skip", "TestRepairedAtOnce|TestTenThousand|TestSealedStaysSealed/in_time|TestProcessHangs|TestASlowProcess|TestIptablesRulesThatDrop")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
