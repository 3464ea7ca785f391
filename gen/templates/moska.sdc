# Clock and delays of the ports, for synthesis and timing of the unit alone. In a design, its own
# clock constrains the unit. Everything, aresetn included, is synchronous to aclk; a third of the
# period is left for what is outside.
create_clock -name aclk -period @period@ [get_ports aclk]
set_input_delay @delay@ -clock aclk [get_ports {
@inputs@
}]
set_output_delay @delay@ -clock aclk [get_ports {
@outputs@
}]
