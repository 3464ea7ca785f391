// moska_kernel: the unit under the names of ports that Vitis expects of a kernel.
// SPDX-License-Identifier: Apache-2.0
// Written by moska @version@, configuration `@name@`.

module moska_kernel (
@ports@
);

@instance@
endmodule
