@ What a call of a layer goes through while QEMU counts by layer: it notes the board's timer before and after. probes.py has
@ these bytes, and a test holds them to this text; no image has them.
@
@ It may change no register that a call keeps or passes, not even the stack: the layer may have arguments there. So it saves
@ what it uses in a slot of its own (a layer does not call itself). Each instruction runs once in each call, whatever happens:
@ if the log is full, its last entry is written over.
    .syntax unified
    .thumb
    .balign 4
    .global probe
probe:
    ldr.w   ip, slot
    stm.w   ip, {r0, r1, lr}
    ldr.w   r0, log
    ldrd    r1, lr, [r0]        @ the latest entry of the log, and the last that there is room for
    cmp     r1, lr
    it      lo
    addlo   r1, #8
    str     r1, [r0]
    ldr.w   lr, enters
    str.w   lr, [r1]
    ldr.w   lr, timer
    ldr.w   lr, [lr]
    str.w   lr, [r1, #4]
    ldrd    r0, r1, [ip]
    ldr.w   lr, target
    blx     lr
    ldr.w   ip, slot
    stm.w   ip, {r0, r1}
    ldr.w   r0, log
    ldrd    r1, lr, [r0]
    cmp     r1, lr
    it      lo
    addlo   r1, #8
    str     r1, [r0]
    ldr.w   lr, leaves
    str.w   lr, [r1]
    ldr.w   lr, timer
    ldr.w   lr, [lr]
    str.w   lr, [r1, #4]
    ldm.w   ip, {r0, r1, lr}
    bx      lr
    .balign 4
slot:   .word 0                 @ three words
log:    .word 0                 @ two words: the latest entry, the last one; then entries of two words: event, timer
enters: .word 0                 @ what the entries say: that the layer begins, and that it has returned
leaves: .word 0
timer:  .word 0
target: .word 0                 @ the layer
