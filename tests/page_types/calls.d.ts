/** What templates.mjs writes in the place of templates. */
type Given<Props> = NoInfer<Props> & { key?: unknown };

declare function componentOf<Props>(type: (props: Props) => unknown, props: Given<Props>): any;
declare function componentOf<Props>(type: import("preact").ComponentType<Props>, props: Given<Props>): any;
declare function elementOf(type: string, props: object): any;
